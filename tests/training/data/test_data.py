"""Every source gives the same examples, and every bad input is named."""

import csv
import json
import logging

import datasets
import pytest
from conftest import FIXTURES

from latent_cot import tasks
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.rows import format_line, parse_line
from latent_cot.training.data.sources import load_splits
from latent_cot.training.errors import InputError

EXAMPLES = [
    {"question": 'Tom has 2, Ann "3".\nHow many?', "steps": ["<<2+3=5>>", "<<5*1=5>>"], "answer": "5"},
    {"question": "żółw 1+1?", "steps": [], "answer": "2"},
    {"question": "3+4-1", "steps": ["[7, 6]"], "answer": "6"},
]
ONE_LINE = [{**example, "question": example["question"].replace("\n", " ")} for example in EXAMPLES]
PUBLISHED = sorted((FIXTURES / "published").glob("*.txt"))


def load(split="train", **arguments):
    return load_splits(DataArguments(**arguments), [split])[split]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_csv(path, rows: list[list[str]]):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def as_json(path):
    return write(path / "a.json", json.dumps(EXAMPLES, indent=1))


def as_json_lines(path):
    return write(path / "b.json", "".join(json.dumps(example) + "\n" for example in EXAMPLES))


def as_jsonl(path):
    """Further columns, a blank line, a byte order mark, numbers as answers."""
    rows = [example | {"answer": int(example["answer"]), "idx": 3} for example in EXAMPLES]
    return write(path / "c.jsonl", "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def as_csv_of_json(path):
    rows = [[example["answer"], example["question"], json.dumps(example["steps"])] for example in EXAMPLES]
    return write_csv(path / "d.csv", [["answer", "question", "steps"], *rows])


def as_csv_of_lines(path):
    rows = [[example["question"], "\n".join(example["steps"][:2]), example["answer"]] for example in EXAMPLES[:2]]
    return write_csv(path / "e.csv", [["question", "steps", "answer"], *rows, ["3+4-1", '["[7, 6]"]', "6"]])


def as_text(path):
    return write(path / "f.txt", "\n".join(map(format_line, ONE_LINE)) + "\n")


SOURCES = [as_json, as_json_lines, as_jsonl, as_csv_of_json, as_csv_of_lines, as_text]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_files(source, streaming, tmp_path):
    found = load(train_file=source(tmp_path), streaming=streaming)
    assert isinstance(found, datasets.IterableDataset if streaming else datasets.Dataset)
    for _ in range(2):  # a stream can be read again
        assert list(found) == (ONE_LINE if source is as_text else EXAMPLES)
    assert set(found.features) == {"question", "steps", "answer"}


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_dataset(streaming, tmp_path):
    split = datasets.Dataset.from_list(EXAMPLES)
    datasets.DatasetDict({"train": split, "test": split.select([1])}).save_to_disk(tmp_path)
    assert list(load(dataset_name=str(tmp_path), streaming=streaming)) == EXAMPLES
    assert list(load("test", dataset_name=str(tmp_path), streaming=streaming)) == [EXAMPLES[1]]


@pytest.mark.parametrize("streaming", [False, True])
def test_task(streaming):
    settings = "operations=3,train=20,validation=5,test=5"
    arguments = DataArguments(dataset_name="chain", task_args=settings, streaming=streaming)
    found = load_splits(arguments, ["train", "validation", "test"])
    assert {split: list(rows) for split, rows in found.items()} == tasks.generate("chain", settings)


@pytest.mark.parametrize("streaming", [False, True])
def test_limits(streaming, tmp_path):
    """A limit is kept for its own split, and nothing after it is read."""
    path = write(tmp_path / "a.jsonl", json.dumps(EXAMPLES[1]) + "\n" + json.dumps(EXAMPLES[2]) + "\nnot JSON\n")
    arguments = {f"{split}_file": path for split in ("train", "validation", "test")}
    limits = {"max_train_samples": 1, "max_eval_samples": 2, "max_predict_samples": 1}
    found = load_splits(DataArguments(**arguments, **limits, streaming=streaming), ["train", "validation", "test"])
    assert {split: len(list(rows)) for split, rows in found.items()} == {"train": 1, "validation": 2, "test": 1}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_lines(path):
    """Every line comes back as it was; equations are steps of their own."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20
    assert [format_line(parse_line(line)) for line in lines] == lines
    examples = list(load(train_file=str(path)))
    assert examples == [parse_line(line) for line in lines]
    for line, example in zip(lines, examples, strict=True):
        assert line.startswith(example["question"] + "||") and line.endswith("#### " + example["answer"])
        assert len(example["steps"]) == (line.count("<<") or 1)


@pytest.mark.parametrize(
    "line, steps",
    [
        ("q|| #### 9", []),
        ("q  ||<<1+1=2>> #### 2", ["<<1+1=2>>"]),
        ("q||<<1+1=2>> <<2/.5=4>> #### 4", ["<<1+1=2>>", "<<2/.5=4>>"]),
        ("q||so <<1+1=2>> #### 2", ["so <<1+1=2>>"]),
        ("a|b||c||d #### 2", ["c||d"]),
        ("q||first #### 1 then #### 2", ["first #### 1 then"]),
    ],
)
def test_parse_line(line, steps):
    assert parse_line(line)["steps"] == steps
    assert format_line(parse_line(line)) == line


def test_parse_line_without_spaces():
    wanted = {"question": "q", "steps": ["<<1+1=2>>", "<<2+1=3>>"], "answer": "3"}
    assert parse_line("q||<<1+1=2>><<2+1=3>>####3") == wanted


GOOD = {"question": "q", "steps": ["s"], "answer": "1"}
BAD_ROWS = [
    ({"question": "q", "answer": "1"}, "no column 'steps'; there are: question, answer"),
    ({"problem": "q", "steps": [], "answer": "1"}, "no column 'question'; there are: problem, steps, answer"),
    (GOOD | {"answer": None}, "'answer' is null"),
    (GOOD | {"question": 3}, "'question' must be text, found int"),
    (GOOD | {"answer": True}, "'answer' must be text or a number, found bool"),
    (GOOD | {"answer": ["1"]}, "'answer' must be text or a number, found list"),
    (GOOD | {"steps": 5}, "'steps' must be a list of texts"),
    (GOOD | {"steps": ["s", 1]}, "'steps' must be a list of texts"),
    (GOOD | {"question": " \n"}, "the question is empty"),
    (GOOD | {"answer": ""}, "the answer is empty"),
    (["q", "1"], "expected an object with question, steps and answer, found list"),
    ("q", "expected an object with question, steps and answer, found str"),
    (None, "expected an object with question, steps and answer, found NoneType"),
]


@pytest.mark.parametrize("row, message", BAD_ROWS, ids=lambda value: value[:24] if isinstance(value, str) else "")
def test_bad_row(row, message, tmp_path):
    """Named with file and place, whatever the format."""
    listed = write(tmp_path / "a.json", json.dumps([GOOD, row]))
    lines = write(tmp_path / "b.jsonl", f"{json.dumps(GOOD)}\n\n{json.dumps(row)}\n")
    for path, where in ((listed, "row 1"), (lines, "line 3")):
        for streaming in (False, True):
            with pytest.raises(InputError) as error:
                list(load(train_file=path, streaming=streaming))
            assert str(error.value).startswith(f"{path}, {where}: {message}")
            assert "--max_bad_rows" in str(error.value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.jsonl", '{"question": "q",\n', "line 1: not JSON (Expecting property name"),
        ("a.json", '[{"question": "q"', "not JSON: Expecting ',' delimiter: line 1 column"),
        ("a.json", '{"data": []}', "line 1: no column 'question'; there are: data"),
        ("a.txt", "q||s #### 1\n\nno bar #### 1\n", "line 3: no '||' in 'no bar #### 1'"),
        ("a.txt", "q||no mark\n", "line 1: no '####' in 'q||no mark'"),
        ("a.txt", "||s #### 1\n", "line 1: the question is empty"),
        ("a.csv", "question,answer\nq,1\n", "line 2: no column 'steps'; there are: question, answer"),
        ("a.csv", "question,steps,answer\nq,s,1\nq\n", "line 3: no column 'steps'; there are: question"),
        ("a.csv", "question,steps,answer\nq,[1],1\n", "line 2: 'steps' must be a list of texts"),
        (
            "a.csv",
            "question,steps,answer\nWhat, is,s,1\n",
            "line 2: more fields than columns (question, steps, answer)",
        ),
        ("a.json", "", "no rows"),
        ("a.json", "[]", "no rows"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.csv", "question,steps,answer\n", "no rows"),
        ("a.txt", "", "no rows"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_file(name, text, message, streaming, tmp_path):
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as error:
        list(load(train_file=path, streaming=streaming))
    assert str(error.value).replace(path, "").lstrip(",: ").startswith(message)
    assert str(error.value).startswith(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "no data: pass --dataset_name or --train_file"),
        ({"validation_file": "v.json"}, "no train data: pass --train_file"),
        ({"train_file": "missing/a.json"}, "missing/a.json: no such file"),
        ({"train_file": str(FIXTURES)}, "fixtures: no such file"),
        (
            {"train_file": __file__},
            r"test_data.py: cannot read '.py' files; use one of .json, .jsonl, .csv, .txt \(also with .gz",
        ),
        (
            {"dataset_name": "chian"},
            r"data set 'chian' is neither a task \(affine, chain, graph, multiplication, parity, permutations, word_problems\) nor a DatasetDict folder",
        ),
        ({"dataset_name": "chain", "task_args": "size=3"}, "--task_args: task chain has no setting 'size'"),
        ({"dataset_name": "chain", "task_args": "train=0,test=1"}, "chain, split train: no rows"),
        ({"dataset_name": "chain", "max_train_samples": 0}, "--max_train_samples must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_arguments(arguments, message, streaming):
    with pytest.raises(InputError, match=message):
        load(**arguments, streaming=streaming)


def test_nothing_to_do():
    with pytest.raises(InputError, match="nothing to do: pass --do_train"):
        load_splits(DataArguments(dataset_name="chain"), [])


def test_bad_saved_dataset(tmp_path):
    """Unknown splits and bad rows are named with the data set and the split."""
    rows = datasets.Dataset.from_list([GOOD, GOOD | {"question": ""}])
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path)
    for split, message in (
        ("test", "split test: no such split; there are: train, validation"),
        ("train", "split train, row 1: the question is empty"),
    ):
        with pytest.raises(InputError) as error:
            load(split, dataset_name=str(tmp_path))
        assert str(error.value).startswith(f"{tmp_path}, {message}")
    datasets.DatasetDict({"train": rows, "validation": rows.select([])}).save_to_disk(tmp_path / "empty")
    with pytest.raises(InputError, match=f"{tmp_path / 'empty'}.*without rows"):
        load(dataset_name=str(tmp_path / "empty"))


def test_max_bad_rows(tmp_path, caplog):
    """Up to N bad rows are left out and named; one more is an error that names five."""
    lines = [json.dumps(GOOD), *["{"] * 6, json.dumps(EXAMPLES[1])]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    with caplog.at_level(logging.WARNING):
        assert list(load(train_file=path, max_bad_rows=6)) == [GOOD, EXAMPLES[1]]
    assert f"left out 6 bad rows: {path}, line 2: not JSON" in caplog.text
    assert "line 6" in caplog.text and "line 7" not in caplog.text
    with pytest.raises(InputError) as error:
        load(train_file=path, max_bad_rows=5)
    assert str(error.value).startswith(f"{path}, line 2: not JSON") and str(error.value).endswith("(and 1 more)")
    with pytest.raises(InputError, match="no rows"):
        load(train_file=write(tmp_path / "b.jsonl", "{\n{\n"), max_bad_rows=2)

"""Every source gives the same examples, and every bad input is named."""

import csv
import json
import logging
from decimal import Decimal
from functools import partial

import datasets
import numpy as np
import pytest
from conftest import FIXTURES

from latent_cot import tasks
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.rows import format_line, parse_line
from latent_cot.training.data.sources import as_dataset, load_splits
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


def test_a_stream_can_be_read_again(tmp_path):
    found = load(train_file=as_jsonl(tmp_path), streaming=True)
    assert list(found) == list(found) == EXAMPLES


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
    (GOOD | {"steps": "s"}, "'steps' must be a list of texts"),
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


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_file_of_another_encoding(name, tmp_path):
    path = tmp_path / name
    path.write_bytes('[{"question": "żółw"'.encode("utf-16"))
    with pytest.raises(InputError, match=f"{name}.*'utf-8' codec can't decode"):
        load(train_file=str(path))


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


def test_saved_dataset_with_an_empty_split(tmp_path):
    rows = datasets.Dataset.from_list([GOOD])
    datasets.DatasetDict({"train": rows, "validation": rows.select([])}).save_to_disk(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}.*without rows"):
        load(dataset_name=str(tmp_path))


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


def test_columns_of_the_stepwise_data_sets(tmp_path):
    """`input` and `output` (chain #### answer), as lintang/implicit-cot-math has them."""
    rows = [
        {"input": "5 6 * 7 4", "output": "5 5 + 0 6 #### 8 0"},
        {"input": "How many?", "output": "<<1+1=2>> #### 2"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_splits(DataArguments(train_file=str(path)), ["train"])["train"].to_list()
    assert examples == [
        {"question": "5 6 * 7 4", "steps": ["5 5 + 0 6"], "answer": "8 0"},
        {"question": "How many?", "steps": ["<<1+1=2>>"], "answer": "2"},
    ]


def test_gsm8k_as_published(tmp_path):
    """`answer` holds sentences with equations and, after ####, the answer; in a row with `steps` too."""
    rows = [
        {
            "question": "How many?",
            "answer": "Tom has 1+1=<<1+1=2>>2 pears.\nAnn has 2*600=<<2*600=1200>>1200.\n#### 1,200",
        },
        {"question": "And now?", "answer": "None is left.\n#### 0"},
        {"question": "Why?", "answer": "#### 7"},
        {"question": "Else?", "steps": ["s"], "answer": "so it is\n#### 2"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_splits(DataArguments(train_file=str(path)), ["train"])["train"].to_list() == [
        {"question": "How many?", "steps": ["<<1+1=2>>", "<<2*600=1200>>"], "answer": "1,200"},
        {"question": "And now?", "steps": ["None is left."], "answer": "0"},
        {"question": "Why?", "steps": [], "answer": "7"},
        {"question": "Else?", "steps": ["s"], "answer": "2"},
    ]


def failure(path, **arguments) -> str:
    with pytest.raises(InputError) as error:
        load(train_file=str(path), **arguments)
    return str(error.value).removeprefix(str(path))


JSON_ROW = '{"question": "q", "steps": ["s"], "answer": %s}'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "value, message",
    [
        ("NaN", "'answer' must be text or a finite number, found nan"),
        ("-Infinity", "'answer' must be text or a finite number, found -inf"),
        ("1e999", "'answer' must be text or a finite number, found inf"),
        ("9" * 5_000, "'answer' is a number of 5,000 digits"),
        ('"\\ud800"', "'answer' holds '\\ud800', half of a surrogate pair"),
        ('"1\\u0000"', "'answer' holds a NUL character"),
        ('"1", "answer": "2"', "'answer' is there twice"),
        ("true", "'answer' must be text or a number, found bool"),
        ('"1", "steps": [["s"]]', "'steps' is there twice"),
    ],
    ids=lambda value: value[:20],
)
def test_what_json_would_read_as_something_else(value, message, tmp_path):
    row = JSON_ROW % value
    assert failure(write(tmp_path / "a.jsonl", f"{JSON_ROW % 1}\n{row}\n")).startswith(f", line 2: {message}")
    assert failure(write(tmp_path / "b.json", f"[{JSON_ROW % 1},\n {row}]")).startswith(f", row 1: {message}")
    for path in ("a.jsonl", "b.json"):
        assert len(load(train_file=str(tmp_path / path), max_bad_rows=1)) == 1


def test_a_column_that_is_not_read_may_hold_anything(tmp_path):
    other = JSON_ROW % ('"1", "idx": ' + "9" * 5_000 + ', "idx": [NaN, "\\ud800"]')
    assert list(load(train_file=write(tmp_path / "a.jsonl", other))) == [GOOD]


def test_json_that_is_nested_too_deeply(tmp_path):
    lines = write(tmp_path / "a.jsonl", f"{JSON_ROW % 1}\n{JSON_ROW % DEEP}\n")
    assert failure(lines).startswith(", line 2: not JSON (nested too deeply)")
    assert list(load(train_file=lines, max_bad_rows=1)) == [GOOD]
    # After such a row the rest of a list cannot be read.
    assert failure(write(tmp_path / "a.json", f"[{JSON_ROW % 1},{DEEP}]")) == ": not JSON: nested too deeply"
    steps = json.dumps(DEEP)[1:-1]
    table = write(tmp_path / "a.csv", f"question,steps,answer\nq,{steps},1\n")
    assert list(load(train_file=table)) == [GOOD | {"steps": [DEEP]}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]", ", row 0: expected an object with question, steps and answer, found int"),
        (f"[{JSON_ROW % 1}] x", ": not JSON: Extra data: line 1 column 50"),
        (f"[{JSON_ROW % 1},]", ": not JSON: "),
        (f"[{JSON_ROW % 1} {JSON_ROW % 1}]", ": not JSON: Expecting ',' delimiter: line 1 column 49 (char 48)"),
    ],
)
def test_json_that_is_no_list_of_objects(text, message, tmp_path):
    assert failure(write(tmp_path / "a.json", text)).startswith(message)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_bytes_that_are_not_utf8_spoil_one_row(name, tmp_path):
    """Named by row and by the byte in it, far into a file, and up to its end; NUL too."""
    good, head, end, between = {
        "a.json": (JSON_ROW % 1, "[", "]", ",\n"),
        "a.jsonl": (JSON_ROW % 1, "", "", "\n"),
        "a.csv": ("q,s,1", "question,steps,answer\n", "", "\r\n"),
        "a.txt": ("q||s #### 1", "", "", "\r\n"),
    }[name]
    place = {"a.json": "row 1500", "a.csv": "line 1502"}.get(name, "line 1501")
    for letter, message in (
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position"),
        (b"\xed\xa0\x80", "'utf-8' codec can't decode byte 0xed in position"),
        (b"q\xc5", "'utf-8' codec can't decode byte"),
    ):
        rows = [good.encode()] * 1_500 + [good.encode().replace(b"s", letter)]
        path = tmp_path / name
        path.write_bytes(head.encode() + between.encode().join(rows) + end.encode())
        assert failure(path).startswith(f", {place}: {message}")
        assert list(load(train_file=str(path), max_bad_rows=1)) == [GOOD] * 1_500
    cut = (head + good + between + good).encode() + "ż".encode()[:1]
    path.write_bytes(cut)
    assert "codec can't decode byte 0xc5" in failure(path) or "not JSON" in failure(path)


def test_csv_names_the_line_where_a_row_begins(tmp_path):
    rows = "".join(f"q{i},s,1\n" for i in range(9))
    path = write(tmp_path / "a.csv", f'question,steps,answer\nq,s,1\n"open,s,1\n{rows}"q",s,1\nq,s,1\n')
    assert failure(path).startswith(", line 3: not CSV: ',' expected after '\"' (its record goes on to line 13)")
    assert list(load(train_file=path, max_bad_rows=1)) == [GOOD, GOOD]
    path = write(tmp_path / "a.csv", f'question,steps,answer\nq,s,1\n"open,s,1\n{rows}')
    assert failure(path).startswith(", line 3: not CSV: unexpected end of data (its record goes on to line 12)")


def test_csv_fields(tmp_path):
    path = write(tmp_path / "a.csv", "question,steps,answer,answer\nq,s,1,2\n")
    assert failure(path) == ", line 1: the column 'answer' is there twice"
    path = write_csv(tmp_path / "b.csv", [["question", "steps", "answer"], ["q" * 200_000, "a\u2028b\r\nc", "None"]])
    assert list(load(train_file=path)) == [{"question": "q" * 200_000, "steps": ["a\u2028b", "c"], "answer": "None"}]
    path = write_csv(tmp_path / "c.csv", [["question", "steps", "answer"], ["q", "['a', 'b']", "1"]])
    assert failure(path).startswith(", line 2: 'steps' is neither a JSON list of texts nor one step per line: not JSON")


def test_a_line_that_is_too_long(tmp_path, monkeypatch, request):
    monkeypatch.setattr("latent_cot.training.data.files.LONGEST_LINE", 100)
    request.addfinalizer(partial(csv.field_size_limit, csv.field_size_limit()))  # which is the whole process's
    long = "q" * 250
    for name, text, line in (
        ("a.txt", f"q||s #### 1\n{long}||s #### 1\nq||s #### 1\n", 2),
        ("a.jsonl", f"{JSON_ROW % 1}\n{JSON_ROW % f'{1:0250}'}\n{JSON_ROW % 1}\n", 2),
        ("a.csv", f"question,steps,answer\nq,s,1\n{long},s,1\nq,s,1\n", 3),
    ):
        path = write(tmp_path / name, text)
        assert failure(path).startswith(f", line {line}: longer than 100 characters")
        assert list(load(train_file=path, max_bad_rows=1)) == [GOOD, GOOD]


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.txt", "q||s #### 1\n")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    assert failure(path) == ": cannot be read: Permission denied"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"input": None, "output": "s #### 1"}, "'input' is null"),
        ({"input": 5, "output": "s #### 1"}, "'input' must be text, found int"),
        ({"input": "q", "output": ["s #### 1"]}, "'output' must be text, found list"),
        (GOOD | {"question": float("nan")}, "'question' must be text, found float"),
        (GOOD | {"answer": Decimal("sNaN")}, "'answer' must be text or a finite number, found sNaN"),
        (GOOD | {"answer": np.float32("inf")}, "'answer' must be text or a finite number, found inf"),
        (GOOD | {"answer": np.bool_(True)}, "'answer' must be text or a number, found bool"),
        (GOOD | {"answer": 10**5_000}, "'answer' is a number of too many digits"),
        (GOOD | {"steps": np.array([["s"]])}, "'steps' must be a list of texts"),
        ({"x" * 999: 1, "a\nb": 1}, "no column 'question'; there are: " + "x" * 200 + "..."),
    ],
)
def test_bad_rows_from_python(row, message):
    with pytest.raises(InputError) as error:
        as_dataset([row])
    assert str(error.value).startswith(f"row 0: {message}")


def test_rows_from_python():
    """The types that rows of `datasets` and numpy have; a `||` in an input is a part of it."""
    rows = [
        GOOD | {"answer": Decimal("1.50")},
        GOOD | {"answer": np.int64(7), "steps": np.array(["s"])},
        GOOD | {"answer": np.float32(0.5), "question": np.str_("q"), "steps": ("s",)},
        {"input": "||v||", "output": "s #### 1"},
    ]
    assert list(as_dataset(rows)) == [
        *(GOOD | {"answer": answer} for answer in ("1.50", "7", "0.5")),
        GOOD | {"question": "||v||"},
    ]


def test_bad_rows_before_a_limit_are_named(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "bad\nq||s #### 1\nbad too\n")
    with caplog.at_level(logging.WARNING):
        assert list(load(train_file=path, max_bad_rows=1, max_train_samples=1)) == [GOOD]
    assert f"left out 1 bad rows: {path}, line 1: no '||' in 'bad'" in caplog.text

"""Whatever `datasets` reads: tables, compressed files, several files, parts of splits; what it holds is checked."""

import bz2
import gzip
import json
import logging

import datasets
import numpy as np
import pyarrow
import pytest

from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.sources import as_dataset, dataset_label, load_splits
from latent_cot.training.errors import InputError

ROWS = [{"question": f"{i}+{i}?", "steps": [f"{i}+{i}"], "answer": str(2 * i)} for i in range(200)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def load(*needed, **arguments):
    found = load_splits(DataArguments(**arguments), list(needed) or ["train"])
    return found if needed else list(found["train"])


@pytest.fixture
def saved(tmp_path):
    """A folder of a DatasetDict."""
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "validation": rows.select(range(3))}).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_and_compressed_files(streaming, tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    rows.save_to_disk(tmp_path / "one")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "a.json.bz2").write_bytes(bz2.compress(json.dumps(ROWS).encode()))
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(TEXT.encode())
    arrow = next((tmp_path / "one").glob("*.arrow"))
    for path in (*(tmp_path / f"a.{end}" for end in ("parquet", "jsonl.gz", "json.bz2", "jsonl.zst")), arrow):
        assert load(train_file=str(path), streaming=streaming) == ROWS, path
    assert load(dataset_name=str(tmp_path / "one"), streaming=streaming) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl.gz", b"no gzip", "cannot be read: .*"),
        ("a.jsonl.zst", b"no zstandard", "cannot be read: .*"),
        ("a.parquet", b"no table", "not Parquet: .*"),
        ("a.arrow", b"no table", "not Arrow: .*"),
        ("a.jsonl.gz", gzip.compress(b'{"question": "q"}\n', mtime=0), "line 1: no column 'steps'"),
    ],
)
def test_files_that_are_none(name, content, message, streaming, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        load(train_file=str(tmp_path / name), streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_several_files(streaming, tmp_path):
    for number in range(3):
        (tmp_path / f"part{number}.jsonl").write_text(TEXT[: TEXT.index("\n") + 1].replace("0+0", f"{number}"))
    (tmp_path / "a,b.jsonl").write_text(TEXT)

    def asked(files: str) -> list[str]:
        return [row["question"] for row in load(train_file=files, streaming=streaming)]

    assert asked(f"{tmp_path}/part*.jsonl") == ["0?", "1?", "2?"]
    assert asked(f"{tmp_path}/part2.jsonl, {tmp_path}/part[01].jsonl") == ["2?", "0?", "1?"]
    assert len(asked(f"{tmp_path}/a,b.jsonl")) == 200
    (tmp_path / "part3.jsonl").write_text("{}\n")
    for files, message in (
        (f"{tmp_path}/part*.jsonl", "part3.jsonl, line 1: no column 'question'"),
        (f"{tmp_path}/none*.jsonl", r"none\*.jsonl: no such file"),
        (f"{tmp_path}/part1.jsonl,{tmp_path}/none.jsonl", "none.jsonl: no such file"),
        (f"{tmp_path}/part1.jsonl,{tmp_path}/part[12].jsonl", "part1.jsonl: named twice"),
    ):
        with pytest.raises(InputError, match=message):
            asked(files)
    assert dataset_label(DataArguments(train_file="data/a.jsonl, b/c.jsonl")) == "a.jsonl, c.jsonl"


def test_parts_of_a_split(saved, tmp_path):
    (tmp_path / "a.jsonl").write_text(TEXT)
    for source in ({"dataset_name": saved}, {"train_file": str(tmp_path / "a.jsonl")}):
        for part, wanted in (("[:10]", ROWS[:10]), ("[10%:20%]", ROWS[20:40]), ("[-5:]", ROWS[-5:])):
            assert load(**source, train_split=f"train{part}") == wanted
        assert load(**source, train_split="train[10:20]", max_train_samples=3) == ROWS[10:13]
        for wrong in ("train[", "train[:x]", "train[10:20"):
            with pytest.raises(InputError, match="no such part of a split"):
                load(**source, train_split=wrong)
        with pytest.raises(InputError, match=r"train\[5:5\]: no rows of 200"):
            load(**source, train_split="train[5:5]")
    task = load(dataset_name="chain", task_args="train=20,validation=2,test=2", train_split="train[5:8]")
    assert task == load(dataset_name="chain", task_args="train=20,validation=2,test=2")[5:8]
    with pytest.raises(InputError, match=r"train\[:10\].*--max_train_samples"):
        load(train_file=str(tmp_path / "a.jsonl"), train_split="train[:10]", streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_shares_cut_off_the_training_data(streaming, saved, tmp_path):
    """Disjoint, the same each time and from each source, other ones with another seed; twins are on one side."""
    (tmp_path / "a.jsonl").write_text(TEXT * 2)
    options = {"train_file": str(tmp_path / "a.jsonl"), "validation_split": "0.1", "test_split": "0.2"}
    parts = {
        split: {row["question"] for row in rows}
        for split, rows in load("train", "validation", "test", **options, streaming=streaming).items()
    }
    assert set().union(*parts.values()) == {row["question"] for row in ROWS}
    assert sum(map(len, parts.values())) == 200
    assert 8 <= len(parts["validation"]) <= 32 and 25 <= len(parts["test"]) <= 55
    test = load("test", dataset_name=saved, test_split="0.2")["test"]
    assert {row["question"] for row in test} == parts["test"]
    other = load("test", **options, split_seed=1)["test"]
    assert {row["question"] for row in other} != parts["test"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation_split": "1.5"}, "--validation_split 1.5: a share of the training data is above 0 and below 1"),
        ({"test_split": "0"}, "--test_split 0: a share"),
        ({"validation_split": "nan"}, "--validation_split nan: a share"),
        ({"validation_split": "0.5", "test_split": "0.5"}, "leave nothing of the training data"),
        ({"validation_split": "0.1", "validation_file": "b.jsonl"}, "two sources of validation data"),
        ({"validation_split": "0.000001"}, "a.jsonl: no rows of this part"),
    ],
)
def test_shares_that_are_none(options, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(TEXT)
    with pytest.raises(InputError, match=message):
        load("validation", train_file=str(tmp_path / "a.jsonl"), **options)


def test_a_configuration_that_is_missing(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: a.jsonl\n- config_name: socratic\n  data_files: a.jsonl\n---\n"
    )
    (tmp_path / "a.jsonl").write_text(TEXT)
    with pytest.raises(
        InputError, match=r"Config name is missing.*\['main', 'socratic'\] \(--dataset_config_name NAME\)"
    ):
        load(dataset_name=str(tmp_path))
    with pytest.raises(InputError, match=r"'mian' not found.*\['main', 'socratic'\] \(--dataset_config_name NAME\)"):
        load(dataset_name=str(tmp_path), dataset_config_name="mian")
    assert load(dataset_name=str(tmp_path), dataset_config_name="main") == ROWS


# --- data sets that are handed over in Python ---


def typed(answers: list, kind) -> datasets.Dataset:
    columns = {"question": [f"q{i}" for i in range(len(answers))], "steps": [["s"]] * len(answers), "answer": answers}
    text = datasets.Value("string")
    features = datasets.Features({"question": text, "steps": datasets.List(text), "answer": kind})
    return datasets.Dataset.from_dict(columns, features=features)


def forms(rows: datasets.Dataset, tmp_path):
    """The same rows, as they can be handed over and as they can be read."""
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    yield as_dataset(rows)
    yield as_dataset(rows.with_format("numpy"))
    yield as_dataset(rows.to_iterable_dataset())
    yield load(dataset_name=str(tmp_path / "saved"))
    yield load(train_file=str(tmp_path / "rows.parquet"))
    yield load(train_file=str(tmp_path / "rows.parquet"), streaming=True)


@pytest.mark.parametrize(
    "answers, kind, wanted",
    [
        ([0, 1, 1], datasets.ClassLabel(names=["no", "yes"]), ["no", "yes", "yes"]),
        ([2.0, 3.0, 1e6], datasets.Value("float64"), ["2", "3", "1000000"]),
        ([2.0, 2.5], datasets.Value("float64"), ["2", "2.5"]),
        ([2, 3], datasets.Value("int32"), ["2", "3"]),
    ],
)
def test_typed_answers(answers, kind, wanted, tmp_path):
    rows = typed(answers, kind)
    for found in (
        *forms(rows, tmp_path),
        *([] if isinstance(kind, datasets.ClassLabel) else [as_dataset(rows.to_list())]),
    ):
        assert [row["answer"] for row in found] == wanted


@pytest.mark.parametrize(
    "answers, kind, message",
    [
        ([2.0, None], datasets.Value("float64"), "row 1: 'answer' is null"),
        ([0, -1], datasets.ClassLabel(names=["no", "yes"]), "row 1: 'answer' is null"),
        (["1", ""], datasets.Value("string"), "row 1: the answer is empty"),
        (["1", None], datasets.Value("string"), "row 1: 'answer' is null"),
    ],
)
def test_bad_rows_of_data_sets(answers, kind, message, tmp_path):
    rows = typed(answers, kind)
    for form in (
        rows,
        rows.with_format("numpy"),
        rows.to_iterable_dataset(),
        rows.to_iterable_dataset().shuffle(seed=1),
    ):
        with pytest.raises(InputError, match=message.split(": ")[1]):
            list(as_dataset(form))
    with pytest.raises(InputError, match=message):
        as_dataset(rows)


def test_a_data_set_is_checked_once(caplog):
    """And one that was made of a checked one is checked anew."""
    rows = datasets.Dataset.from_list(ROWS)
    found = as_dataset(rows)
    assert list(found) == ROWS and as_dataset(found) is found
    spoiled = found.map(lambda row: {"answer": ""})
    with pytest.raises(InputError, match="row 0: the answer is empty"):
        as_dataset(spoiled)
    with caplog.at_level(logging.INFO):
        as_dataset(rows.rename_column("steps", "cot"))
    assert "row 0: question/answer rows: question = question, steps = cot" in caplog.text


def test_arrays_in_rows():
    rows = [{"messages": np.array([{"role": "user", "content": "q"}, {"role": "assistant", "content": "#### 3"}])}]
    assert list(as_dataset(rows)) == [{"question": "q", "steps": [], "answer": "3"}]

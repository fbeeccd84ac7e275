"""Bad rows and bytes: each is named with its file and place, and may be left out (`--max_bad_rows`)."""

import csv
import json
import logging
from decimal import Decimal
from functools import partial

import numpy as np
import pytest
from test_data import GOOD, load, write, write_csv

from latent_cot.training.data.sources import as_dataset
from latent_cot.training.errors import InputError


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
    path.write_bytes('[{"question": "żółw"'.encode("utf-16"))
    assert "'utf-8' codec can't decode" in failure(path)


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

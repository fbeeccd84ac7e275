"""Hostile data files, through the function that the scripts use: an answer, or one line that names the file."""

import csv
import io
import json
import re
import resource
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.small import QUIET
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.rows import format_line
from latent_cot.training.data.sources import load_splits
from latent_cot.training.errors import InputError

SECONDS = 20  # for one file; all are small
MOST_MEMORY = 4 * 2**20  # KiB

WORDS = st.sampled_from(["1+1?", "żółw 😀", "How many?", "2", "<<1+1=2>>", "so 2"])
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["a||b", "a #### b", " ", "", "\ufeff", "\x00", "\u2028", "\r", "None", "[1]", "['a']", "x,\ny"]),
)
SURROGATES = st.sampled_from(["\ud800", "q\udfff", "\udcff"])
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, float("nan"), float("inf"), 1e308, -0.0, True, False])
)
VALUES = st.recursive(
    st.one_of(st.none(), TEXTS, SURROGATES, NUMBERS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
GOOD = st.fixed_dictionaries({"question": WORDS, "steps": st.lists(WORDS, max_size=3), "answer": WORDS})
NAMES = st.sampled_from(["question", "steps", "answer", "input", "output", "idx", ""])
NEARLY_GOOD = st.builds(lambda row, name, value: row | {name: value}, GOOD, NAMES, VALUES)
STEPWISE = st.fixed_dictionaries({"input": TEXTS, "output": st.one_of(VALUES, st.just("so 2 #### 2"))})
ROWS = st.lists(st.one_of(GOOD, GOOD, NEARLY_GOOD, NEARLY_GOOD, STEPWISE, VALUES), min_size=1, max_size=5)

# What a mutation puts in: bytes that are no text, and pieces that are hard to read.
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [
            *(b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf0\x9f\x98", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b"\\", b",", b"\n", b"\r"),
            *(b"\r\n", b"||", b"####", b"<<", b">>", b"[", b"]", b"{", b"}", b":", b'"\\ud800"', b"NaN", b"-Infinity", b"1e999", b"null"),
            *(b"[" * 60_000, b'{"a":' * 60_000, b"9" * 5_000, b"x" * 140_000, b'"answer": "2", ', b"question,question\n", b"1.5"),
            *(b'"\n"' * 5, b"\x1a", b"\xc2\x85", b"\xe2\x80\xa8", b"'a', ", b"['a']"),
        ]
    ),
)  # fmt: skip
VALUE = re.compile(rb'"[^"\n]*"|\d+')
ENDINGS = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])


def as_json(rows: list, ending: str) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=len(ending) > 1)


def as_jsonl(rows: list, ending: str) -> str:
    return "".join(json.dumps(row, ensure_ascii=len(ending) > 1) + ending for row in rows)


def as_csv(rows: list, ending: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerow(["question", "steps", "answer"])
    for row in rows:
        fields = row.values() if isinstance(row, dict) else [row]
        writer.writerow([json.dumps(field) if isinstance(field, list) else field for field in fields])
    return file.getvalue()


def as_text(rows: list, ending: str) -> str:
    lines = []
    for row in rows:
        plain = isinstance(row, dict) and isinstance(row.get("steps"), list) and {"question", "answer"} <= row.keys()
        lines.append(format_line(row | {"steps": map(str, row["steps"])}) if plain else str(row))
    return "".join(line + ending for line in lines)


WRITERS = {".json": as_json, ".jsonl": as_jsonl, ".csv": as_csv, ".txt": as_text}


@st.composite
def files(draw) -> tuple[str, bytes]:
    """A suffix and the bytes of a file: well written rows, good and bad ones; with some bytes changed; or any bytes."""
    suffix, writer = draw(st.sampled_from(list(WRITERS.items())))
    if draw(st.integers(0, 19)) == 0:
        return suffix, b"".join(draw(st.lists(PIECES, max_size=8)))
    content = writer(draw(ROWS), draw(ENDINGS)).encode(errors="surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(["value", "value", "replace", "cut off", "twice"]))
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 4)))
        values = [found.span() for found in VALUE.finditer(content)]
        if kind == "value" and values:  # a whole one, so that what is around it stays well written
            start, end = draw(st.sampled_from(values))
        match kind:
            case "value" | "replace":
                content = content[:start] + draw(PIECES) + content[end:]
            case "cut off":
                content = content[:start]
            case "twice":
                content = content[:end] + content[start:]
    encoding = draw(st.sampled_from([None] * 18 + ["utf-16", "latin-1"]))
    if encoding:
        content = content.decode(errors="replace").encode(encoding, errors="replace")
    return suffix, draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + content


OPTIONS = st.fixed_dictionaries(
    {
        "max_bad_rows": st.sampled_from([0, 0, 2, 1000]),
        "max_train_samples": st.sampled_from([None, None, 2]),
        "streaming": st.booleans(),
    }
)


@contextmanager
def time_limit(seconds: int):
    """Fails where something hangs."""

    def stop(*_):
        raise TimeoutError(f"no answer after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_read_or_named(file: tuple[str, bytes], options: dict) -> None:
    suffix, content = file
    with tempfile.TemporaryDirectory() as folder, time_limit(SECONDS):
        path = Path(folder) / f"data{suffix}"
        path.write_bytes(content)
        try:
            rows = list(load_splits(DataArguments(train_file=str(path), **options), ["train"])["train"])
        except InputError as error:
            message = str(error)
            assert str(path) in message
            assert "\n" not in message and len(message) < 3_000 and message.encode()
            return
        assert rows and len(rows) <= (options["max_train_samples"] or len(rows))
        for row in rows:
            assert set(row) == {"question", "steps", "answer"}
            for text in (row["question"], row["answer"], *row["steps"]):
                assert isinstance(text, str) and "\0" not in text and text.encode() is not None
            assert row["question"].strip() and row["answer"].strip()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MOST_MEMORY


CASES = given(file=files(), options=OPTIONS)
test_some_hostile_files = settings(max_examples=150, **QUIET)(CASES(is_read_or_named))
test_many_hostile_files = pytest.mark.slow(settings(max_examples=10_000, **QUIET)(CASES(is_read_or_named)))

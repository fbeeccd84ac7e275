"""Rows of data files: what cannot be read is a bad row, named with its file and line.

JSON, JSON Lines, CSV and text are read here, compressed or not. `datasets` has readers of them, and they lose what a row
check needs (seen with 5.2): a line that is not JSON, a byte that is not UTF-8 and a field that is there twice end the file
and name no line; in a JSON list with 2.0 and 1 both are floats; in a CSV file 007 becomes 7.0 beside an empty field, `None`
and `NA` become no text at all, and a column that is there twice gets a name of its own.
Parquet and Arrow files, which have types and no lines, are read by `datasets`.

Bytes that are not UTF-8 reach a row as lone surrogates (`surrogateescape`), so one bad byte spoils one row and not a file.
"""

import csv
import glob
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import datasets
import numpy as np
import pyarrow

from latent_cot.training.errors import InputError

from .layouts import COLUMNS, LINE_END, QUOTED_LIST, on_one_line
from .rows import RawRows, parse_line

LONGEST_LINE = 2**24  # characters; far beyond any example, so a longer line is no row
EXACT = 2**53  # from here on not every whole number is a float
COMPRESSED = (".gz", ".zst", ".bz2")
TABLES = {".parquet": "parquet", ".arrow": "arrow"}


def find_files(names: str) -> list[Path]:
    """The files that a flag names: paths and patterns (`data/*.jsonl`), joined by commas. Raises InputError for a
    pattern without a file, and for a file that is named twice.
    """
    if Path(names).is_file():  # whatever stands in its name
        return [Path(names)]
    paths = []
    for name in map(str.strip, names.split(",")):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not Path(name).exists() else [name]
        if not found:
            raise InputError(f"{name}: no such file")
        paths += map(Path, found)
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path}: named twice in {names!r}")
    return paths


def read_file(path: Path) -> RawRows:
    """Raw rows of a file, each with the place it came from; a row that cannot be read is its `InputError`. Raises
    InputError for a file that is not there, cannot be opened, or cannot be read on.
    """
    readers = {".json": read_json, ".jsonl": read_rows, ".csv": read_csv, ".txt": partial(read_rows, parse=parse_line)}
    if not path.is_file():
        raise InputError(f"{path}: no such file" + (" (it is a folder)" if path.is_dir() else ""))
    if path.suffix in TABLES:
        return read_table(path)
    kind = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if kind not in readers:
        raise InputError(
            f"{path}: cannot read '{path.suffix}' files; use one of {', '.join(readers)} (also with "
            f"{', '.join(COMPRESSED)}), {', '.join(TABLES)}"
        )
    return name_failure(path, readers[kind](path))


def read_table(path: Path) -> RawRows:
    """Rows of a Parquet or Arrow file."""
    try:
        held = datasets.load_dataset(
            TABLES[path.suffix], data_files=glob.escape(str(path)), split="train", streaming=True
        )
        for index, row in enumerate(python_rows(held)):
            yield f"{path}, row {index}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not {path.suffix[1:].capitalize()}: {on_one_line(str(error))}") from error


def python_rows(held: datasets.Dataset | datasets.IterableDataset) -> Iterator[dict]:
    """Rows of a data set in Python's types, whatever its format: classes by their names, and see `whole_numbers`."""
    features = held.features or {}
    classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    for row in held.with_format(None):
        for name, kind in classes.items():
            if row[name] is not None:
                row[name] = kind.int2str(row[name]) if 0 <= row[name] < kind.num_classes else None
        yield whole_numbers(row)


def whole_numbers(row: dict) -> dict:
    """A row whose whole floats, which one null makes of a column of integers, are whole numbers."""
    floats = [name for name, value in row.items() if isinstance(value, float | np.floating)]
    return row | {name: int(row[name]) for name in floats if row[name].is_integer() and abs(row[name]) < EXACT}


def name_failure(path: Path, rows: RawRows) -> RawRows:
    """The rows as they are; a file that the system does not give is named."""
    try:
        yield from rows
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> RawRows:
    """A JSON list of objects (or, as data sets are often published, one object a line). Raises InputError where a list
    is not JSON: what comes after cannot be told apart.
    """
    with open_text(path) as file:
        text = ""
        while not text.strip() and (more := file.read(4096)):
            text += more
        is_list = text.lstrip().startswith("[")
        text += file.read() if is_list else ""
    if not is_list:
        yield from read_rows(path)
        return
    try:
        rows = DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {json_problem(error)}") from error
    is_utf8 = not_utf8(text) is None
    for index, row in enumerate(rows):
        yield (
            f"{path}, row {index}",
            row if is_utf8 else not_utf8(json.dumps(row, ensure_ascii=False, default=str)) or row,
        )


def read_csv(path: Path) -> RawRows:
    """Columns by their names; `steps` is a JSON list, or one step a line, and `windows` a JSON list of lists. A row is
    named by its first line. Raises InputError for a header that cannot be read or has a column twice.
    """
    csv.field_size_limit(LONGEST_LINE)  # the module's own limit is 131,072 characters
    unreadable: list[InputError] = []  # lines of the present record

    def lines() -> Iterator[str]:
        for _, line in read_lines(path, newline=""):
            if isinstance(line, InputError):
                unreadable.append(line)
            yield "\n" if isinstance(line, InputError) else line

    header, reader = None, csv.reader(lines(), strict=True)
    while True:
        first, fields = reader.line_num + 1, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = f" (its record goes on to line {reader.line_num})" if reader.line_num > first else ""
            unreadable.append(InputError(f"not CSV: {error}{last}"))
        where, problem = f"{path}, line {first}", unreadable[0] if unreadable else None
        unreadable.clear()
        if header is None and problem:
            raise InputError(f"{where}: {problem}")
        if header is None:
            header = check_header(where, fields) or None
        elif problem or fields:
            yield where, problem or csv_row(header, fields)


def check_header(where: str, header: list[str]) -> list[str]:
    for name in header:
        if header.count(name) > 1 and name in COLUMNS:
            raise InputError(f"{where}: the column {name!r} is there twice")
    return header


def csv_row(header: list[str], fields: list[str]) -> dict | InputError:
    """A record as a row."""
    if len(fields) > len(header):
        return InputError(f"more fields than columns ({on_one_line(', '.join(header))}): quote the commas")
    row = dict(zip(header, fields, strict=False))  # a missing field is a missing column
    if len(row) < len(fields):
        row |= {name: InputError("is there twice") for name in row if header.count(name) > 1}
    if "steps" in row:
        row["steps"] = csv_steps(row["steps"])
    if "windows" in row:
        row["windows"] = csv_windows(row["windows"])
    return row


def csv_steps(text: str) -> object:
    """A JSON list, or one step per line; steps without text are left out."""
    steps = LINE_END.split(text)
    if text.lstrip().startswith("["):
        try:
            steps = parse_json(text)
        except InputError as error:
            if QUOTED_LIST.match(text):  # as Python prints lists: read as lines it would be one wrong step
                return InputError(f"is neither a JSON list of texts nor one step per line: {error}")
    return [step for step in steps if step != ""]


def csv_windows(text: str) -> object:
    """A JSON list of lists; none in an empty field."""
    try:
        return parse_json(text) if text.strip() else None
    except InputError as error:
        return error


def open_text(path: Path, newline: str | None = None) -> TextIO:
    if path.suffix in COMPRESSED:
        packed = io.BufferedReader(pyarrow.input_stream(str(path), compression="detect"))
        return io.TextIOWrapper(packed, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def read_lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str | InputError]]:
    """Lines with their numbers, from 1; one that is too long or not UTF-8 is its `InputError`."""
    with open_text(path, newline) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                rest = line
                while rest and not rest.endswith(("\n", "\r")):
                    rest = file.readline(LONGEST_LINE)
                line = InputError(f"longer than {LONGEST_LINE:,} characters, so it is no row")
            else:
                line = not_utf8(line) or line
            yield number, line


def not_utf8(text: str) -> InputError | None:
    """What is wrong with a text that was read with `surrogateescape`, if it was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text.encode(errors="surrogateescape").decode()
        except UnicodeDecodeError as error:
            return InputError(f"{error} (bytes of this row are counted from 0)")
    return None


def parse_json(text: str) -> object:
    """A JSON value; what stands in it twice, or cannot be held, is an `InputError` in its place. Raises InputError if
    it is not JSON.
    """
    try:
        return DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"not JSON ({json_problem(error)})") from error


def json_problem(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def one_object(pairs: list[tuple[str, object]]) -> dict:
    """An object; json would keep the last of two fields of one name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        row |= {name: InputError("is there twice") for name in row if names.count(name) > 1}
    return row


def read_rows(path: Path, parse: Callable[[str], object] = parse_json) -> RawRows:
    """A row for every line that is not blank: JSON Lines, unless it is parsed otherwise."""
    for number, line in read_lines(path):
        if isinstance(line, str) and not line.strip():
            continue
        try:
            row = line if isinstance(line, InputError) else parse(line.rstrip("\n"))
        except InputError as error:
            row = error
        yield f"{path}, line {number}", row


def whole_number(text: str) -> int | InputError:
    try:
        return int(text)
    except ValueError:  # beyond some thousand digits Python refuses
        return InputError(f"is a number of {len(text):,} digits")


DECODER = json.JSONDecoder(object_pairs_hook=one_object, parse_int=whole_number)

"""Rows as examples `{question, steps, answer}`, some with `windows`: what is one (`layouts.py`), and what is said of others."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import datasets
import numpy as np
from datasets import Dataset

from latent_cot.training.errors import InputError

from .layouts import OWN, check_text, field_of, has_system, layout_of, parse_chain, read_row

logger = logging.getLogger(__name__)

TEXT = datasets.Value("string")
FEATURES = datasets.Features({"question": TEXT, "steps": datasets.List(TEXT), "answer": TEXT})
FEATURES_WITH_WINDOWS = datasets.Features(FEATURES | {"windows": datasets.List(datasets.List(TEXT))})
SYSTEM = "system"
NAMED = 5  # bad rows that are named; the others are counted
RawRows = Iterable[tuple[str, object]]  # each with the place it came from; one that could not be read is its InputError


def parse_line(line: str) -> dict:
    """`question||steps #### answer` as an example; `<<...>>` equations are steps, other text is one step.

    The first `||` ends the question, and what follows the last `####` is the answer.

    Raises InputError for a line without `||` or `####`.
    """
    question, bar, rest = line.partition("||")
    if not bar:
        raise InputError(f"no '||' in {line[:60]!r}")
    return {"question": question, **parse_chain(rest, line)}


def format_line(example: dict) -> str:
    """The inverse of `parse_line`."""
    return f"{example['question']}||{' '.join(example['steps'])} #### {example['answer']}"


@dataclass(frozen=True)
class Reading:
    """How rows are read as examples."""

    columns: dict[str, str] = field(default_factory=dict)  # names of a user's own, by field (`layouts.columns_of`)
    with_steps: bool = True  # whether an example needs a chain; without one its `steps` are empty
    keep: Callable[[dict], bool] | None = None  # which examples count; all by default
    found: set[str] = field(default_factory=set, compare=False)  # `SYSTEM`, once a question began with one

    def key(self) -> list:
        """What the examples depend on, as JSON can write it."""
        return [self.columns, self.with_steps, self.keep and repr(self.keep)]


def log(level: int, message: str) -> None:
    logger.log(level, "%s", message)


def examples_of(
    rows: RawRows,
    max_bad_rows: int,
    limit: int | None = None,
    report: Callable[[int, str], None] = log,
    reading: Reading | None = None,
) -> Iterator[dict]:
    """The first `limit` checked examples; up to `max_bad_rows` bad rows are left out and the first five named. Raises
    InputError at the first bad row beyond.

    Args:
        report: is told of the first row's layout, if it is another than ours, and at the end of rows that were left out.
    """
    reading = Reading() if reading is None else reading
    named, bad, good, said = [], 0, 0, None
    for where, row in rows if limit != 0 else ():
        try:
            example = check_row(row, reading.with_steps, reading.columns)
        except InputError as error:
            bad += 1
            if len(named) < NAMED:
                named.append(f"{where}: {error}")
            if bad > max_bad_rows:
                more = f" (and {bad - NAMED} more)" if bad > NAMED else ""
                hint = "" if max_bad_rows else "; --max_bad_rows N leaves out up to N such rows"
                raise InputError(f"{'; '.join(named)}{more}{hint}") from error
            continue
        if said is None:
            said = describe(where, row, reading.columns)
            if said:
                report(logging.INFO, said)
        if reading.keep is not None and not reading.keep(example):
            continue
        if SYSTEM not in reading.found and has_system(row, layout_of(row, reading.columns)):
            reading.found.add(SYSTEM)
        yield example
        good += 1
        if good == limit:
            break
    if bad:
        report(logging.WARNING, f"left out {bad} bad rows: {'; '.join(named)}")


def describe(where: str, row: dict, columns: dict[str, str]) -> str:
    """Where the example of a good row was found, and in which columns; "" for our own."""
    layout = layout_of(row, columns)
    if (layout.question, layout.steps, layout.answer) == (OWN.question, "steps", OWN.answer):
        return ""
    return f"{where}: {layout.describe(read_row(row, layout)[1] is not None)}"


def without_empty_windows(rows: Dataset) -> Dataset:
    """Rows without the column `windows`, where none of them has any."""
    return rows.remove_columns("windows") if rows.data.column("windows").null_count == len(rows) else rows


def dataset_of(examples: list[dict]) -> Dataset:
    """Checked examples as a data set."""
    filled = [{"windows": None} | example for example in examples]
    return without_empty_windows(Dataset.from_list(filled, features=FEATURES_WITH_WINDOWS))


def check_row(row: object, with_steps: bool = True, columns: dict[str, str] | None = None) -> dict:
    """A row as an example. Raises InputError that says what is wrong."""
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"expected an object with question, steps and answer, found {type(row).__name__}")
    layout = layout_of(row, columns or {})
    name = layout.steps or "steps"
    if with_steps and layout.steps is None and layout.answer not in row:  # the first one missing is named
        for column in (*layout.question, name):
            field_of(row, column)
    question, steps, answer = read_row(row, layout)
    if steps is None:
        steps = field_of(row, name) if with_steps else []
    if isinstance(answer, int | float | Decimal | np.integer | np.floating) and not isinstance(answer, bool):
        answer = number_text(layout.answer, answer)
    if not isinstance(answer, str):
        raise InputError(f"{layout.answer!r} must be text or a number, found {type(answer).__name__}")
    steps = steps.tolist() if isinstance(steps, np.ndarray) else steps
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise InputError(f"{name!r} must be a list of texts")
    example = {
        "question": question,
        "steps": [check_text(name, step) for step in steps],
        "answer": check_text(layout.answer, answer),
    }
    for name in ("question", "answer"):
        if not example[name].strip():
            raise InputError(f"the {name} is empty")
    if row.get("windows") is not None:
        example["windows"] = check_windows(field_of(row, "windows"), len(steps))
    return example


def check_windows(windows: object, steps: int) -> list[list[str]]:
    """What each latent stands for after each pass: a list over passes, pass 0 first, of a text per step ("" for none).
    Raises InputError for anything else.
    """
    windows = windows.tolist() if isinstance(windows, np.ndarray) else windows
    if not isinstance(windows, list | tuple) or not windows:
        raise InputError("'windows' must be a list over passes, each with a text per step")
    for number, texts in enumerate(windows):
        if not isinstance(texts, list | tuple | np.ndarray) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"'windows' of pass {number} must be a list of texts")
        if len(texts) != steps:
            raise InputError(f"'windows' of pass {number} has {len(texts)} texts, and there are {steps} steps")
    return [[check_text("windows", text) for text in texts] for texts in windows]


def number_text(name: str, number: int | float | Decimal) -> str:
    """A number as an answer. Raises InputError for NaN, infinities, and whole numbers that Python does not write out."""
    finite = number.is_finite() if isinstance(number, Decimal) else True
    if isinstance(number, float | np.floating):
        finite = math.isfinite(number)
    if not finite:
        raise InputError(f"{name!r} must be text or a finite number, found {number}")
    try:
        return str(number)
    except ValueError as error:
        raise InputError(f"{name!r} is a number of too many digits") from error

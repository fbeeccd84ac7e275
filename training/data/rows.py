"""Rows as examples `{question, steps, answer}`, some with `windows`: what is one, and what is said of a row that is none."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

import datasets
import numpy as np
from datasets import Dataset

from latent_cot.training.errors import InputError

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "question": datasets.Value("string"),
        "steps": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("string"),
    }
)
FEATURES_WITH_WINDOWS = datasets.Features(
    FEATURES | {"windows": datasets.List(datasets.List(datasets.Value("string")))}
)
EQUATION = re.compile(r"<<[^<>]*>>")
EQUATIONS = re.compile(rf"({EQUATION.pattern}\s*)+")
NAMED = 5  # bad rows that are named; the others are counted
RawRows = Iterable[tuple[str, object]]  # each with the place it came from; one that could not be read is its InputError


def parse_line(line: str) -> dict:
    """`question||steps #### answer` as an example; `<<...>>` equations are steps, other text is one step.

    The first `||` ends the question, and what follows the last `####` is the answer.

    Raises:
        InputError: for a line without `||` or `####`.
    """
    question, bar, rest = line.partition("||")
    if not bar:
        raise InputError(f"no '||' in {line[:60]!r}")
    return {"question": question, **parse_chain(rest, line)}


def parse_chain(text: str, line: str) -> dict:
    """`steps #### answer` as `steps` and `answer`; `line` is what an error shows."""
    chain, mark, answer = text.rpartition("####")
    if not mark:
        raise InputError(f"no '####' in {line[:60]!r}")
    chain = chain.strip()
    if EQUATIONS.fullmatch(chain):
        steps = EQUATION.findall(chain)
    else:
        steps = [chain] if chain else []
    return {"steps": steps, "answer": answer.strip()}


def parse_rationale(text: str) -> dict:
    """GSM8K's `answer` as `steps` and `answer`: the equations among its sentences, or, without any, the text, are steps."""
    chain, _, answer = text.rpartition("####")
    return {"steps": EQUATION.findall(chain) or [chain.strip()] * bool(chain.strip()), "answer": answer.strip()}


def format_line(example: dict) -> str:
    """The inverse of `parse_line`."""
    return f"{example['question']}||{' '.join(example['steps'])} #### {example['answer']}"


def examples_of(
    rows: RawRows, max_bad_rows: int, limit: int | None = None, report: Callable[[str], None] = logger.warning
) -> Iterator[dict]:
    """The first `limit` checked examples; up to `max_bad_rows` bad rows are left out and the first five named.

    Args:
        report: is told of rows that were left out, at the end.

    Raises:
        InputError: at the first bad row beyond.
    """
    named, bad, good = [], 0, 0
    for where, row in rows if limit != 0 else ():
        try:
            example = check_row(row)
        except InputError as error:
            bad += 1
            if len(named) < NAMED:
                named.append(f"{where}: {error}")
            if bad > max_bad_rows:
                more = f" (and {bad - NAMED} more)" if bad > NAMED else ""
                hint = "" if max_bad_rows else "; --max_bad_rows N leaves out up to N such rows"
                raise InputError(f"{'; '.join(named)}{more}{hint}") from error
            continue
        yield example
        good += 1
        if good == limit:
            break
    if bad:
        report(f"left out {bad} bad rows: {'; '.join(named)}")


def without_empty_windows(rows: Dataset) -> Dataset:
    """Rows without the column `windows`, where none of them has any."""
    return rows.remove_columns("windows") if rows.data.column("windows").null_count == len(rows) else rows


def dataset_of(examples: list[dict]) -> Dataset:
    """Checked examples as a data set."""
    filled = [{"windows": None} | example for example in examples]
    return without_empty_windows(Dataset.from_list(filled, features=FEATURES_WITH_WINDOWS))


def check_row(row: object) -> dict:
    """A row as an example.

    Raises:
        InputError: saying what is wrong with it.
    """
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"expected an object with question, steps and answer, found {type(row).__name__}")
    if "question" not in row and {"input", "output"} <= row.keys():  # as published for stepwise internalisation
        question, output = (check_text(name, field_of(row, name)) for name in ("input", "output"))
        row = {"question": question, **parse_chain(output, output)}
    if "steps" not in row and isinstance(row.get("answer"), str) and "####" in row["answer"]:  # as GSM8K is published
        row = {"question": field_of(row, "question"), **parse_rationale(check_text("answer", row["answer"]))}
    question, steps, answer = (field_of(row, name) for name in ("question", "steps", "answer"))
    if isinstance(answer, int | float | Decimal | np.integer | np.floating) and not isinstance(answer, bool):
        answer = number_text(answer)
    if not isinstance(answer, str):
        raise InputError(f"'answer' must be text or a number, found {type(answer).__name__}")
    steps = steps.tolist() if isinstance(steps, np.ndarray) else steps
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise InputError("'steps' must be a list of texts")
    example = {
        "question": check_text("question", question),
        "steps": [check_text("steps", step) for step in steps],
        "answer": check_text("answer", answer),
    }
    for name in ("question", "answer"):
        if not example[name].strip():
            raise InputError(f"the {name} is empty")
    if row.get("windows") is not None:
        example["windows"] = check_windows(field_of(row, "windows"), len(steps))
    return example


def check_windows(windows: object, steps: int) -> list[list[str]]:
    """What each latent stands for after each pass: a list over passes, pass 0 first, of a text per step ("" for none).

    Raises:
        InputError: for anything else.
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


def field_of(row: dict, name: str) -> object:
    """A field of a row that has to be there, once, and readable (otherwise its value is what a reader says of it)."""
    if name not in row:
        raise InputError(f"no column {name!r}; there are: {on_one_line(', '.join(map(str, row)))}")
    if row[name] is None:
        raise InputError(f"{name!r} is null")
    if isinstance(row[name], InputError):
        raise InputError(f"{name!r} {row[name]}")
    return row[name]


def check_text(name: str, text: object) -> str:
    """Text that tokenizers and Arrow can hold.

    Raises:
        InputError: for anything else, for half a surrogate pair, and for NUL, which is no text (a file in UTF-16 has it).
    """
    if not isinstance(text, str):
        raise InputError(f"{name!r} must be text, found {type(text).__name__}")
    if "\0" in text:
        raise InputError(f"{name!r} holds a NUL character; is the data UTF-8?")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} holds {text[error.start]!a}, half of a surrogate pair") from error
    return str(text)


def number_text(number: int | float | Decimal) -> str:
    """A number as an answer.

    Raises:
        InputError: for NaN, infinities, and whole numbers that Python does not write out.
    """
    finite = number.is_finite() if isinstance(number, Decimal) else True
    if isinstance(number, float | np.floating):
        finite = math.isfinite(number)
    if not finite:
        raise InputError(f"'answer' must be text or a finite number, found {number}")
    try:
        return str(number)
    except ValueError as error:
        raise InputError("'answer' is a number of too many digits") from error


def on_one_line(text: str, most: int = 200) -> str:
    """The beginning of a text as an error shows it."""
    shown = " ".join(text[:most].split()) + ("..." if len(text) > most else "")
    return shown.encode(errors="backslashreplace").decode()

"""When two answers are the same (`--compare`)."""

import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from importlib import import_module
from pathlib import Path
from types import ModuleType

from latent_cot.answer_modes import ANSWER_SOURCES
from latent_cot.training.errors import InputError

Comparison = Callable[[str | None, str], bool]  # whether an answer, None where there is none, is the right one

THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
SEVERAL_NUMBERS = re.compile(r"\d\s+[-+]?\d")
UNIT = re.compile(r"\d\s*([^\W\d_]+)\.?$")
TIMEOUT = 2  # seconds for one comparison by math-verify


def describe(compare: str | None, source: str) -> str:
    """How answers are read and compared, in the words of a card."""
    read = "" if source == "prompt" else f"Answers are read from the texts: {ANSWER_SOURCES[source]}. "
    ways = {"text": "Answers are compared as text.", "math": "Answers are compared by math-verify."}
    if compare in (None, "number"):
        return f"{read}Numbers are compared as numbers."
    return read + ways.get(str(compare), f"Answers are compared by `{compare}`.")


def check_source(source: str | None) -> None:
    if source is not None and source not in ANSWER_SOURCES:
        raise InputError(f"--answer_from must be one of {', '.join(ANSWER_SOURCES)}, got {source!r}")


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers agree: numbers as numbers (`1,450,000` is `1450000`, `18.0` is `18`), other text as text."""
    if given is None:
        return False
    given, gold = (" ".join(text.split()) for text in (given, gold))
    numbers = as_number(given), as_number(gold)
    return given == gold or (None not in numbers and numbers[0] == numbers[1])


def as_number(text: str) -> Decimal | None:
    """The number a text is, or None; a currency sign, a percent sign and a final full stop are left aside."""
    text = text.strip().removeprefix("$").removesuffix(".").removesuffix("%").strip()
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def repeats_answer(step: str, answer: str) -> bool:
    """Whether a last step gives the answer away: it is the answer, or an equation with this result."""
    result = step.rpartition("=")[2].strip(" <>.")
    return answer.strip() in (step.strip(), result) or (
        as_number(result) is not None and as_number(result) == as_number(answer)
    )


def same_text(given: str | None, gold: str) -> bool:
    """Whether two answers are the same text, but for spaces."""
    return given is not None and given.split() == gold.split()


def same_value(given: str | None, gold: str) -> bool:
    r"""Whether two answers have one value, by math-verify: `1/2` is `0.5` and `\frac{1}{2}`, `\boxed{5}` is `5`, `4 apples`
    is `4`, `50%` is `50`; other text, as `Yes` and `(B)`, is the same without case, brackets and full stop.

    Two answers with different units differ; a unit of only one, and words around a number, are left aside. A text with several numbers side
    by side (`5 5 6 0`) is text, because math-verify would read one of them.

    Raises InputError if math-verify is not installed.
    """
    if given is None:
        return False
    math_verify = load_math_verify()
    given, gold = (text.replace("−", "-").strip() for text in (given, gold))
    if same_answer(given, gold) or plain(given) == plain(gold):
        return True
    if not given or SEVERAL_NUMBERS.search(given) or SEVERAL_NUMBERS.search(gold):
        return False
    units = [found.group(1).casefold().rstrip("s") for text in (given, gold) if (found := UNIT.search(text))]
    if len(units) == 2 and units[0] != units[1]:
        return False
    # Its clock is a signal, which only the main thread has.
    limit = TIMEOUT if threading.current_thread() is threading.main_thread() else None
    found = [math_verify.parse(as_formula(text), parsing_timeout=limit) for text in (gold, given)]
    return all(found) and math_verify.verify(*found, timeout_seconds=limit)


def plain(text: str) -> str:
    return " ".join(text.casefold().strip("().[] \n").split())


def as_formula(text: str) -> str:
    """A text as math-verify finds LaTeX and decimals in it."""
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    return f"${text}$" if "\\" in text and "$" not in text and "\\boxed" not in text else text


def load_math_verify():
    try:
        import math_verify
    except ImportError as error:
        raise InputError("--compare math needs math-verify: pip install 'latent-cot[math]'") from error
    return math_verify


COMPARISONS: dict[str, Comparison] = {"number": same_answer, "text": same_text, "math": same_value}


def comparison(name: str | None = None) -> Comparison:
    """What `--compare` names: one of `COMPARISONS`, or `module:function` of two texts, the answer that was given and
    the right one; without an answer it is not called. A module in the current folder is found too. Raises InputError
    for a function that is not there, math-verify that is not installed, and a comparison that gives anything but true
    or false.
    """
    if name is None:
        return same_answer
    if name == "math":
        load_math_verify()
    if ":" not in name:
        if name not in COMPARISONS:
            raise InputError(f"--compare must be one of {', '.join(COMPARISONS)}, or module:function, got {name!r}")
        return COMPARISONS[name]
    function = load_function("compare", name)

    def compare(given: str | None, gold: str) -> bool:
        same = given is not None and function(given, gold)
        if not isinstance(same, bool | int) and type(same).__name__ != "bool":  # numpy's bool too
            raise InputError(f"--compare {name}: expected true or false, got {same!r} for {given!r} and {gold!r}")
        return bool(same)

    return compare


def load_function(flag: str, name: str) -> Callable:
    """The function that a flag names as `module:function`; modules of the current folder are found too. Raises
    InputError if there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(load_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--{flag} {name}: {error}") from error
    if not callable(found):
        raise InputError(f"--{flag} {name}: {function!r} is no function")
    return found


def load_module(name: str) -> ModuleType:
    """A module that can be imported, or else the file of that name in the current folder."""
    path = Path.cwd().joinpath(*name.split(".")).with_suffix(".py")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not path.is_file() or error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""Checked rows as Arrow files in the cache of `datasets` (`HF_DATASETS_CACHE`): made once, memory-mapped by every process.

An entry is found by what it is made from: the bytes of a file, how they are read, and the code that reads them. `datasets`
writes it under another name first and holds a lock meanwhile, so nobody reads half an entry, and one process makes it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from latent_cot.training.errors import InputError

from .rows import FEATURES_WITH_WINDOWS, RawRows, examples_of, without_empty_windows

logger = logging.getLogger(__name__)


def digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def fingerprint(*parts: object) -> str:
    """A key of what can be written as JSON, of this code and of the version of `datasets`."""
    key = hashlib.sha256(json.dumps([datasets.__version__, *parts]).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):  # what other code has read may be something else
        key.update(path.read_bytes())
    return key.hexdigest()[:32]


def cached_rows(
    rows: Callable[[], RawRows], source: Callable[[], str], where: str, max_bad_rows: int, limit: int | None
) -> Dataset:
    """Checked examples of `rows()`, from the cache if they are there.

    Args:
        rows: raw rows; called only if they are not.
        source: tells the content of what they come from.
        where: what an error calls it.
        max_bad_rows, limit: of `examples_of`.

    Raises:
        InputError: for unreadable rows, no rows, a source that changes while it is read, or a cache that cannot be written.
    """
    content = source()
    key, folder = fingerprint(content, where, max_bad_rows, limit), Path(datasets.config.HF_DATASETS_CACHE)
    left_out = folder / f"bad-rows-{key}.txt"

    def examples() -> Iterator[dict]:
        empty = True
        for example in examples_of(rows(), max_bad_rows, limit, left_out_to(left_out)):
            yield {"windows": None} | example
            empty = False
        if empty:
            raise InputError(f"{where}: no rows")
        if source() != content:
            raise InputError(f"{where}: changed while it was read")

    try:
        found = Dataset.from_generator(examples, features=FEATURES_WITH_WINDOWS, cache_dir=str(folder), fingerprint=key)
    except (DatasetGenerationError, ArrowException, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, InputError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno is not None:
            raise InputError(
                f"the cache {folder} cannot be written ({cause}): set HF_DATASETS_CACHE to a folder with room"
            ) from error
        if cause is not error:
            raise
        entry = next(folder.glob(f"generator/*{key}*"), folder)
        raise InputError(
            f"{where}: its rows in the cache are damaged ({' '.join(str(error).split())}): remove {entry}"
        ) from error
    if left_out.exists():
        logger.warning("%s", left_out.read_text(encoding="utf-8"))
    return without_empty_windows(found)


def left_out_to(path: Path) -> Callable[[str], None]:
    """Keeps what is said of bad rows, so that a start from the cache says it too."""

    def keep(message: str) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(message, encoding="utf-8")
        part.replace(path)

    return keep

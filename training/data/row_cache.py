"""Checked rows as Arrow files in the cache of `datasets` (`HF_DATASETS_CACHE`): made once, memory-mapped by every process.

An entry is found by what it is made from: the bytes of a file, how they are read, and the code that reads them. `datasets`
writes it under another name first and holds a lock meanwhile, so nobody reads half an entry, and one process makes it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowException

from latent_cot.training.errors import InputError

from .rows import FEATURES_WITH_WINDOWS, RawRows, Reading, examples_of, log, without_empty_windows


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
    rows: Callable[[], RawRows],
    source: Callable[[], str | list[str]],
    where: str,
    max_bad_rows: int,
    limit: int | None,
    reading: Reading,
) -> Dataset:
    """Checked examples of `rows()`, from the cache if they are there. Raises InputError for unreadable rows, no rows, a
    source that changes while it is read, or a cache that cannot be written.

    Args:
        rows: raw rows; called only if they are not.
        source: tells the content of what they come from.
        where: what an error calls it.
    """
    content = source()
    key = fingerprint(content, where, max_bad_rows, limit, reading.key())
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    said = folder / f"rows-{key}.json"

    def examples() -> Iterator[dict]:
        empty, messages = True, []
        for example in examples_of(
            rows(), max_bad_rows, limit, lambda level, message: messages.append((level, message)), reading
        ):
            yield {"windows": None} | example
            empty = False
        if empty:
            raise InputError(f"{where}: no rows" + (" of this part" if reading.keep else ""))
        if source() != content:
            raise InputError(f"{where}: changed while it was read")
        if messages or reading.found:
            keep(said, {"messages": messages, "found": sorted(reading.found)})

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
    kept = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {"messages": [], "found": []}
    for level, message in kept["messages"]:
        log(level, message)
    reading.found.update(kept["found"])
    return without_empty_windows(found)


def keep(path: Path, what: dict) -> None:
    """Keeps what is said of rows and was found in them, so that a start from the cache knows it too."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(what), encoding="utf-8")
    part.replace(path)

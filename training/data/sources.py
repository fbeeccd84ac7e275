"""Data of every source as examples `{question, steps, answer}` (`rows.py`); a row that cannot be read is named.

Sources: a task of `tasks/`, a name on the Hub, a folder of `save_to_disk`, or files (`files.py`).
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakSet

import datasets
from datasets import Dataset, IterableDataset

from latent_cot import tasks
from latent_cot.training.arguments import DataArguments
from latent_cot.training.errors import InputError

from .files import find_files, python_rows, read_file, whole_numbers
from .layouts import columns_of
from .row_cache import cached_rows, digest_of_file
from .rows import FEATURES, FEATURES_WITH_WINDOWS, SYSTEM, RawRows, Reading, dataset_of, examples_of, log

ALIASES = {"train": ("train",), "validation": ("validation", "valid", "dev", "val"), "test": ("test",)}
CHECKED: WeakSet[Dataset | IterableDataset] = WeakSet()  # made here, so every row is an example
WITH_SYSTEM: WeakSet[Dataset | IterableDataset] = WeakSet()  # a chat's system message is part of their questions


@dataclass(frozen=True)
class Part:
    """The rows of a split that `--validation_split 0.1` and `--test_split 0.1` leave in it, or cut off for another.

    Which part a row belongs to goes by its question and the seed alone: parts are disjoint, the same question is never in
    two of them, and they are the same whatever the order of the rows and however they are read.
    """

    split: str  # "train", "validation" or "test"
    validation: float  # shares of the whole
    test: float
    seed: int

    def __call__(self, example: dict) -> bool:
        digest = hashlib.sha256(f"{self.seed} {example['question']}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        beyond = "validation" if place >= 1 - self.validation else "train"
        return self.split == ("test" if place < self.test else beyond)


def load_splits(
    args: DataArguments, needed: list[str], with_steps: bool = True
) -> dict[str, Dataset | IterableDataset]:
    """The splits a run needs, each with `question`, `steps` and `answer`. Raises InputError for a missing source, split
    or file, an empty split, or unreadable rows.

    Args:
        with_steps: whether the run reads chains; without, rows need none. Test rows, which are only answered, never do.
    """
    if not needed:
        raise InputError("nothing to do: pass --do_train, --do_eval or --do_predict")
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    if args.dataset_name is None and not any(files.values()):
        raise InputError("no data: pass --dataset_name or --train_file, --validation_file, --test_file")
    if args.dataset_name is not None and any(files.values()):
        raise InputError(
            "two sources of data: pass either --dataset_name or files, not both (to use a recipe with your files, add "
            "--dataset_name= --task_args=)"
        )
    if args.task_args and args.dataset_name not in tasks.TASKS:
        name = "a file" if args.dataset_name is None else repr(args.dataset_name)
        raise InputError(f"--task_args: only for a task ({', '.join(sorted(tasks.TASKS))}), and {name} is none")
    shares = {split: share_of(args, split) for split in ("validation", "test")}
    if sum(shares.values()) >= 1:
        raise InputError("--validation_split and --test_split together leave nothing of the training data")
    for split, share in shares.items():
        if share and files[split]:
            raise InputError(f"two sources of {split} data: --{split}_split {share} and --{split}_file")
    source = None if args.dataset_name is None else open_dataset(args)
    found = {}
    for split in needed:
        origin = "train" if shares.get(split) else split
        is_cut = any(shares.values()) and origin == "train"
        reading = Reading(
            columns_of(args.column),
            with_steps and split != "test",
            Part(split, seed=args.split_seed, **shares) if is_cut else None,
        )
        found[split] = load_split(args, split, origin, source, files[origin], reading)
        note(found[split], reading)
    return found


def share_of(args: DataArguments, split: str) -> float:
    """The share of the training data that a flag cuts off for a split; 0 where it names a split, or none. Raises
    InputError for a number that is no share.
    """
    asked = getattr(args, f"{split}_split")
    try:
        share = float(asked or "none")
    except ValueError:
        return 0.0
    if not 0 < share < 1:
        raise InputError(f"--{split}_split {asked}: a share of the training data is above 0 and below 1")
    return share


def load_split(
    args: DataArguments,
    split: str,
    origin: str,
    source: dict[str, Iterable[dict]] | None,
    files: str | None,
    reading: Reading,
) -> Dataset | IterableDataset:
    """One split, of a data set by name or (without `source`) of files; see `load_splits`.

    Args:
        origin: the split that its rows are in.
    """
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    limit = limits[split]
    if source is None and files is None:
        raise InputError(f"no {split} data: pass --{origin}_file")
    if split == "train" and args.streaming:
        found = checked_stream(partial(training_rows, args), args.max_bad_rows, limit, reading)
        if found is None:
            raise InputError(f"{files or f'{args.dataset_name}, split train'}: no rows")
        return found
    if source is None:
        where, piece = files, getattr(args, f"{origin}_split") or ""
        paths = find_files(files)
        rows = [read_file(path) for path in paths]  # refuses a file that is none
        cut = "[" in piece
        found = cached_rows(
            lambda: (row for file in rows for row in file),
            lambda: [digest_of_file(path) for path in paths],
            *(where, args.max_bad_rows, None if cut else limit, reading),
        )
        if not cut:
            return found
        found = part_of(found, piece)
        return found if limit is None else found.select(range(min(limit, len(found))))
    where, held = piece_of(args, origin, source)
    rows = numbered(held, f"{where}, ")
    if isinstance(held, Dataset):
        return cached_rows(lambda: rows, lambda: held._fingerprint, where, args.max_bad_rows, limit, reading)
    examples = list(examples_of(rows, args.max_bad_rows, limit, reading=reading))
    if not examples:
        raise InputError(f"{where}: no rows")
    return dataset_of(examples)


def piece_of(args: DataArguments, split: str, source: dict[str, Iterable[dict]]) -> tuple[str, Iterable[dict]]:
    """What an error calls a split of a data set, and its rows, or those of a part of it (`train[:100]`)."""
    name = find_split(args, split, source)
    asked = getattr(args, f"{split}_split") or ""
    if "[" not in asked:
        return f"{args.dataset_name}, split {name}", source[name]
    return f"{args.dataset_name}, split {asked}", part_of(source[name], asked)


def part_of(held: Iterable[dict], spec: str) -> Iterable[dict]:
    """Rows of a split as `datasets` writes a part of it: `train[:100]`, `train[10%:20%]`. Raises InputError for another
    form, or a stream, whose length is not known.
    """
    name = spec.partition("[")[0]
    if isinstance(held, IterableDataset):
        raise InputError(f"--streaming: {spec!r} needs the length of the data; use --max_train_samples")
    try:
        (part,) = datasets.ReadInstruction.from_spec(spec).to_absolute({name: len(held)})
    except (ValueError, AssertionError) as error:
        raise InputError(f"no such part of a split: {spec!r}; write train[:100] or train[10%:20%]") from error
    if part.from_ >= part.to:
        raise InputError(f"{spec}: no rows of {len(held)}")
    return held.select(range(part.from_, part.to)) if isinstance(held, Dataset) else held[part.from_ : part.to]


def find_split(args: DataArguments, split: str, source: Iterable[str]) -> str:
    """The name of a split in a data set: the one that a flag gives, or the first usual one that is there. Raises
    InputError if there is none.
    """
    asked, names = getattr(args, f"{split}_split"), list(source)
    usual = ALIASES[split] if asked is None else (asked.partition("[")[0],)
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise InputError(
            f"{args.dataset_name}, split {usual[0]}: no such split; there are: {', '.join(names)} (--{split}_split NAME)"
        )
    return found


def as_dataset(rows: Dataset | IterableDataset | list[dict], with_steps: bool = True) -> Dataset | IterableDataset:
    """Rows of `question`, `steps` and `answer`, checked, whatever holds them; a stream is checked as it is read. Raises
    InputError for a row that is no example.
    """
    if isinstance(rows, Dataset | IterableDataset) and rows in CHECKED:
        return rows
    reading = Reading(with_steps=with_steps)
    if isinstance(rows, IterableDataset):
        found = checked_stream(partial(numbered, rows), 0, None, reading) or rows
    elif isinstance(rows, Dataset) and len(rows):
        found = cached_rows(lambda: numbered(rows), lambda: rows._fingerprint, "the data set", 0, None, reading)
    else:
        given = (whole_numbers(row) if isinstance(row, dict) else row for row in rows)
        found = dataset_of(list(examples_of(numbered(given), max_bad_rows=0, reading=reading)))
    note(found, reading)
    return found


def note(rows: Dataset | IterableDataset, reading: Reading) -> None:
    """Remember of rows that they are checked, and whether a system message is part of their questions."""
    CHECKED.add(rows)
    if SYSTEM in reading.found:
        WITH_SYSTEM.add(rows)


def numbered(rows: Iterable, where: str = "") -> RawRows:
    """Rows, each with what an error calls it."""
    rows = python_rows(rows) if isinstance(rows, Dataset | IterableDataset) else rows
    return ((f"{where}row {index}", row) for index, row in enumerate(rows))


def training_rows(args: DataArguments) -> RawRows:
    """The raw rows of the training split, read as they come."""
    if args.dataset_name is not None:
        where, held = piece_of(args, "train", open_dataset(args))
        return numbered(held, f"{where}, ")
    if "[" in (args.train_split or ""):
        raise InputError(f"--streaming: {args.train_split!r} needs the length of the data; use --max_train_samples")
    files = [read_file(path) for path in find_files(args.train_file)]
    return (row for file in files for row in file)


def checked_stream(
    open_rows: Callable[[], RawRows], max_bad_rows: int, limit: int | None, reading: Reading
) -> IterableDataset | None:
    """Rows that are checked as they are read, again in each pass; None where there is none."""
    first = next(examples_of(open_rows(), max_bad_rows, limit, reading=reading), None)
    if first is None:
        return None
    windows = "windows" in first
    options = {"rows": open_rows, "max_bad_rows": max_bad_rows, "limit": limit, "reading": reading, "windows": windows}
    features = FEATURES_WITH_WINDOWS if windows else FEATURES
    return IterableDataset.from_generator(one_pass, gen_kwargs=options, features=features)


def one_pass(rows: Callable[[], RawRows], windows: bool, **options) -> Iterator[dict]:
    """The examples of `checked_stream`, all of one form: with `windows` or without, as the first."""
    for example in examples_of(rows(), report=say_nothing_of_layouts, **options):
        if "windows" in example and not windows:
            raise InputError("--streaming: a row has 'windows' and the first has none; put one that has first")
        yield {"windows": None} | example if windows else example


def say_nothing_of_layouts(level: int, message: str) -> None:
    """Of a stream that is read again and again: its layout was said before."""
    if level > logging.INFO:
        log(level, message)


def open_dataset(args: DataArguments) -> dict[str, Iterable[dict]]:
    """A data set by name: a task, a folder, or from the Hub."""
    name = args.dataset_name
    if name in tasks.TASKS:
        try:
            return tasks.generate(name, args.task_args)
        except ValueError as error:
            raise InputError(f"--task_args: {error}") from error
    if any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json")):
        try:
            held = datasets.load_from_disk(name)
            return {"train": held} if isinstance(held, Dataset) else held
        except Exception as error:
            raise InputError(f"{name}: broken DatasetDict folder, or a split without rows: {error}") from error
    try:
        return datasets.load_dataset(name, args.dataset_config_name, streaming=args.streaming)
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if lines[0].startswith(("Config name is missing", "BuilderConfig")):
            choices = " ".join(lines[:2])
            raise InputError(f"data set {name!r}: {choices} (--dataset_config_name NAME)") from error
        known = ", ".join(sorted(tasks.TASKS))
        raise InputError(
            f"data set {name!r} is neither a task ({known}) nor a DatasetDict folder, and could not be loaded from "
            f"the Hub: {lines[0]}"
        ) from error


def dataset_label(data: DataArguments) -> str:
    """The name of the data in a card."""
    if data.dataset_name is not None:
        return data.dataset_name + (f" ({data.task_args})" if data.task_args else "")
    files = data.train_file or data.validation_file or data.test_file
    return ", ".join(Path(file.strip()).name for file in files.split(","))

"""Data of every source as examples `{question, steps, answer}` (`rows.py`); a row that cannot be read is named.

Sources: a task of `tasks/`, a name on the Hub, a `DatasetDict` folder, or files (`data_files.py`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset

from latent_cot import tasks
from latent_cot.training.arguments import DataArguments
from latent_cot.training.errors import InputError

from .files import read_file
from .row_cache import cached_rows, digest_of_file
from .rows import FEATURES, FEATURES_WITH_WINDOWS, dataset_of, examples_of

ALIASES = {"train": ("train",), "validation": ("validation", "valid", "dev", "val"), "test": ("test",)}


def load_splits(args: DataArguments, needed: list[str]) -> dict[str, Dataset | IterableDataset]:
    """The splits a run needs, each with `question`, `steps` and `answer`.

    Args:
        args: names one source.
        needed: among "train", "validation" and "test".

    Raises:
        InputError: for a missing source, split or file, an empty split, or unreadable rows.
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
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    source = None if args.dataset_name is None else open_dataset(args)
    return {split: load_split(args, split, source, files[split], limits[split]) for split in needed}


def load_split(
    args: DataArguments, split: str, source: dict[str, Iterable[dict]] | None, file: str | None, limit: int | None
) -> Dataset | IterableDataset:
    """One split, of a data set by name or (without `source`) of a file; see `load_splits`."""
    if source is None and file is None:
        raise InputError(f"no {split} data: pass --{split}_file")
    name = None if source is None else find_split(args, split, source)
    where = file if source is None else f"{args.dataset_name}, split {name}"
    if split == "train" and args.streaming:
        first = next(stream_examples(args, limit), None)
        if first is None:
            raise InputError(f"{where}: no rows")
        windows = "windows" in first
        options = {"args": args, "limit": limit, "windows": windows}
        features = FEATURES_WITH_WINDOWS if windows else FEATURES
        return IterableDataset.from_generator(stream_alike, gen_kwargs=options, features=features)
    if source is None:
        path = Path(file)
        rows = read_file(path)  # refuses a file that is none
        return cached_rows(lambda: rows, lambda: digest_of_file(path), where, args.max_bad_rows, limit)
    held = source[name]
    rows = ((f"{where}, row {index}", row) for index, row in enumerate(held))
    if isinstance(held, Dataset):
        return cached_rows(lambda: rows, lambda: held._fingerprint, where, args.max_bad_rows, limit)
    examples = list(examples_of(rows, args.max_bad_rows, limit))
    if not examples:
        raise InputError(f"{where}: no rows")
    return dataset_of(examples)


def find_split(args: DataArguments, split: str, source: Iterable[str]) -> str:
    """The name of a split in a data set: the one that a flag gives, or the first usual one that is there.

    Raises:
        InputError: if there is none.
    """
    asked, names = getattr(args, f"{split}_split"), list(source)
    usual = ALIASES[split] if asked is None else (asked,)
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise InputError(
            f"{args.dataset_name}, split {usual[0]}: no such split; there are: {', '.join(names)} (--{split}_split NAME)"
        )
    return found


def as_dataset(rows: Dataset | IterableDataset | list[dict]) -> Dataset | IterableDataset:
    """Rows of `question`, `steps` and `answer`, checked, whatever holds them; a stream is checked as it is read."""
    if isinstance(rows, IterableDataset) or (
        isinstance(rows, Dataset) and rows.features in (FEATURES, FEATURES_WITH_WINDOWS)
    ):
        return rows
    named = ((f"row {index}", row) for index, row in enumerate(rows))
    return dataset_of(list(examples_of(named, max_bad_rows=0)))


def stream_examples(args: DataArguments, limit: int | None) -> Iterator[dict]:
    """The training split, row by row, without holding it in memory."""
    if args.dataset_name is not None:
        source = open_dataset(args)
        name = find_split(args, "train", source)
        rows = ((f"{args.dataset_name}, split {name}, row {index}", row) for index, row in enumerate(source[name]))
    else:
        rows = read_file(Path(args.train_file))
    yield from examples_of(rows, args.max_bad_rows, limit)


def stream_alike(args: DataArguments, limit: int | None, windows: bool) -> Iterator[dict]:
    """`stream_examples`, all of one form.

    Args:
        windows: whether the first example has `windows`.

    Raises:
        InputError: for one with `windows` where the first has none.
    """
    for example in stream_examples(args, limit):
        if "windows" in example and not windows:
            raise InputError(
                "--streaming: a row of the training data has 'windows' and the first has none; put one that has first"
            )
        yield {"windows": None} | example if windows else example


def open_dataset(args: DataArguments) -> dict[str, Iterable[dict]]:
    """A data set by name: a task, a folder, or from the Hub."""
    name = args.dataset_name
    if name in tasks.TASKS:
        try:
            return tasks.generate(name, args.task_args)
        except ValueError as error:
            raise InputError(f"--task_args: {error}") from error
    if Path(name).is_dir() and (Path(name) / "dataset_dict.json").exists():
        try:
            return datasets.load_from_disk(name)
        except Exception as error:
            raise InputError(f"{name}: broken DatasetDict folder, or a split without rows: {error}") from error
    try:
        return datasets.load_dataset(name, args.dataset_config_name, streaming=args.streaming)
    except Exception as error:
        known = ", ".join(sorted(tasks.TASKS))
        raise InputError(
            f"data set {name!r} is neither a task ({known}) nor a DatasetDict folder, and could not be loaded from "
            f"the Hub: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error


def dataset_label(data: DataArguments) -> str:
    """The name of the data in a card."""
    if data.dataset_name is not None:
        return data.dataset_name + (f" ({data.task_args})" if data.task_args else "")
    return Path(data.train_file or data.validation_file or data.test_file).name

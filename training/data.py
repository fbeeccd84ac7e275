"""Data of every source as examples `{question, steps, answer}`; a row that cannot be read is named.

Sources: a task of `tasks/`, a name on the Hub, a `DatasetDict` folder, or files (.json, .jsonl, .csv, .txt).
"""

import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import datasets
from datasets import Dataset, IterableDataset

import tasks

from .arguments import DataArguments
from .errors import InputError

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "question": datasets.Value("string"),
        "steps": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("string"),
    }
)
EQUATIONS = re.compile(r"(<<[^<>]*>>\s*)+")
Rows = Iterable[tuple[str, object]]
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
        raise InputError("two sources of data: pass either --dataset_name or files, not both")
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_predict_samples}
    found = {}
    source = None if args.dataset_name is None else open_dataset(args)
    for split in needed:
        if source is not None:
            name = find_split(args, split, source)
            where = f"{args.dataset_name}, split {name}"
            rows = ((f"{where}, row {index}", row) for index, row in enumerate(source[name]))
        elif files[split] is None:
            raise InputError(f"no {split} data: pass --{split}_file")
        else:
            where, rows = files[split], read_file(Path(files[split]))
        if split == "train" and args.streaming:
            if next(stream_examples(args, limits[split]), None) is None:
                raise InputError(f"{where}: no rows")
            found[split] = IterableDataset.from_generator(
                stream_examples, gen_kwargs={"args": args, "limit": limits[split]}, features=FEATURES
            )
            continue
        examples = list(islice(examples_of(rows, args.max_bad_rows), limits[split]))
        if not examples:
            raise InputError(f"{where}: no rows")
        found[split] = Dataset.from_list(examples, features=FEATURES)
    return found


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
    if isinstance(rows, IterableDataset) or (isinstance(rows, Dataset) and rows.features == FEATURES):
        return rows
    named = ((f"row {index}", row) for index, row in enumerate(rows))
    return Dataset.from_list(list(examples_of(named, max_bad_rows=0)), features=FEATURES)


def stream_examples(args: DataArguments, limit: int | None) -> Iterator[dict]:
    """The training split, row by row, without holding it in memory."""
    if args.dataset_name is not None:
        source = open_dataset(args)
        name = find_split(args, "train", source)
        rows = ((f"{args.dataset_name}, split {name}, row {index}", row) for index, row in enumerate(source[name]))
    else:
        rows = read_file(Path(args.train_file))
    yield from islice(examples_of(rows, args.max_bad_rows), limit)


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


def read_file(path: Path) -> Rows:
    """Raw rows of a file, each with the place it came from."""
    readers = {".json": read_json, ".jsonl": read_jsonl, ".csv": read_csv, ".txt": read_text}
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in readers:
        raise InputError(f"{path}: cannot read '{path.suffix}' files; use one of {', '.join(readers)}")
    return name_failure(path, readers[path.suffix](path))


def name_failure(path: Path, rows: Rows) -> Rows:
    """The rows as they are; a file that cannot be read on is named."""
    try:
        yield from rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {error}") from error


def read_json(path: Path) -> Rows:
    """A JSON list of objects (or, as data sets are often published, one object a line)."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    for index, row in enumerate(rows):
        yield f"{path}, row {index}", row


def read_jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = InputError(f"not JSON ({error.msg})")
            yield f"{path}, line {number}", row


def read_csv(path: Path) -> Rows:
    """Columns `question`, `steps` (a JSON list, or one step a line) and `answer`."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                yield where, InputError(f"more fields than columns ({', '.join(reader.fieldnames)}): quote the commas")
                continue
            row = {name: value for name, value in row.items() if value is not None}
            steps = row.get("steps")
            if steps is not None:
                try:
                    row["steps"] = json.loads(steps) if steps.lstrip().startswith("[") else steps.splitlines()
                except json.JSONDecodeError:
                    row["steps"] = steps.splitlines()
                row["steps"] = [step for step in row["steps"] if step != ""]
            yield where, row


def read_text(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.rstrip("\n")
            if not line:
                continue
            try:
                row = parse_line(line)
            except InputError as error:
                row = error
            yield f"{path}, line {number}", row


def parse_line(line: str) -> dict:
    """`question||steps #### answer` as an example; `<<...>>` equations are steps, other text is one step.

    Raises:
        InputError: for a line without `||` or `####`.
    """
    question, bar, rest = line.partition("||")
    chain, mark, answer = rest.rpartition("####")
    if not bar or not mark:
        raise InputError(f"no '{'####' if bar else '||'}' in {line[:60]!r}")
    chain = chain.strip()
    if EQUATIONS.fullmatch(chain):
        steps = re.findall(r"<<[^<>]*>>", chain)
    else:
        steps = [chain] if chain else []
    return {"question": question, "steps": steps, "answer": answer.strip()}


def format_line(example: dict) -> str:
    """The inverse of `parse_line`."""
    return f"{example['question']}||{' '.join(example['steps'])} #### {example['answer']}"


def examples_of(rows: Rows, max_bad_rows: int) -> Iterator[dict]:
    """Checked examples; up to `max_bad_rows` bad rows are left out and the first five named.

    Raises:
        InputError: at the first bad row beyond.
    """
    bad = []
    for where, row in rows:
        try:
            yield check_row(row)
        except InputError as error:
            bad.append(f"{where}: {error}")
            if len(bad) > max_bad_rows:
                shown = "; ".join(bad[:5])
                more = f" (and {len(bad) - 5} more)" if len(bad) > 5 else ""
                hint = "" if max_bad_rows else "; --max_bad_rows N leaves out up to N such rows"
                raise InputError(f"{shown}{more}{hint}") from error
    if bad:
        logger.warning("left out %d bad rows: %s", len(bad), "; ".join(bad[:5]))


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
        row = parse_line(f"{row['input']}||{row['output']}")
    for column in ("question", "steps", "answer"):
        if column not in row:
            raise InputError(f"no column {column!r}; there are: {', '.join(map(str, row))}")
        if row[column] is None:
            raise InputError(f"{column!r} is null")
    question, steps, answer = row["question"], row["steps"], row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(question, str):
        raise InputError(f"'question' must be text, found {type(question).__name__}")
    if not isinstance(answer, str):
        raise InputError(f"'answer' must be text or a number, found {type(answer).__name__}")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise InputError("'steps' must be a list of texts")
    if not question.strip():
        raise InputError("the question is empty")
    if not answer.strip():
        raise InputError("the answer is empty")
    return {"question": question, "steps": steps, "answer": answer}

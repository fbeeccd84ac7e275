"""From a command line to typed arguments, and from an exception to one line."""

import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import datasets
import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import InputError, Interrupted
from .flags import joined
from .processes import wait_for_main_process

logger = logging.getLogger(__name__)

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


# Flags of the original scripts and of run_clm.py that are none here, and what to write instead.
SUCCESSORS = {
    "model_type": "--config_name with a file of configs/, or --model_name_or_path",
    "cache_dir": "the environment variable HF_HOME",
    "token": "`hf auth login`, or the environment variable HF_TOKEN",
    "use_auth_token": "`hf auth login`, or the environment variable HF_TOKEN",
    "validation_split_percentage": "--validation_split 0.1 (a share of the training rows), or --validation_file",
    "low_cpu_mem_usage": "nothing: models are always loaded so",
    "use_fast_tokenizer": "nothing: tokenizers are always the fast ones",
    "model": "--model_name_or_path",
    "from_pretrained": "--model_name_or_path (first: latent-cot convert)",
    "train_path": "--train_file",
    "val_path": "--validation_file",
    "test_path": "--test_file",
    "data_path": "--dataset_name",
    "data_name": "--dataset_config_name",
    "valid_split": "--validation_split",
    "epochs": "--num_train_epochs",
    "train_steps": "--max_steps",
    "lr": "--learning_rate",
    "batch_size": "--per_device_train_batch_size",
    "accumulate": "--gradient_accumulation_steps",
    "max_size": "--max_train_samples",
    "save_model": "--output_dir",
    "save_interval": "--save_strategy steps --save_steps",
    "eval_interval": "--eval_strategy steps --eval_steps",
    "remove_tokens": "--remove_every_n_step with the number of steps per removed token",
    "max_remove_length": "nothing: the fork does not read it",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "nothing: checkpoints are always safetensors",
    "include_inputs_for_metrics": "nothing: it has no effect here",
    "on_nan": "nothing: a loss that is no number ends the run",
}


# What `--help` begins with.
FIRST_RUN = (
    "model_name_or_path",
    "config_name",
    "dataset_name",
    "train_file",
    "validation_file",
    "output_dir",
    "do_train",
    "do_eval",
)
AS_PAIRS = ("config_overrides", "task_args")  # their text is `name=value,name=value`
COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
NOT_ONE = "must be a text, a number, true or false"


class ArgumentParser(HfArgumentParser):
    """Flags in groups: those of a first run, then by dataclass. A prefix of a flag is none, and bad flags end in one line."""

    def __init__(self, argument_classes: tuple[type, ...]):
        self.title, self.hints, self._groups = "", {}, {}
        usage = "%(prog)s [RECIPE.yaml] [--flag value ...]"
        super().__init__(argument_classes, usage=usage, allow_abbrev=False, add_help=False)
        self.group("A first run").add_argument("-h", "--help", action="help", help="Show this and stop.")
        for action in self._actions:
            if action.type is string_to_bool:  # a flag that is off unless given may be given bare
                action.nargs, action.const = "?", True

    def group(self, title: str):
        """The group of that title, made where there is none."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def _add_dataclass_arguments(self, dtype: type) -> None:
        self.group("A first run")
        self.hints |= get_type_hints(dtype)
        for title, members in fields_by_class(dtype).items():
            self.group(title)
            for field in members:
                field.type = self.hints[field.name]
                group = self.group("A first run" if field.name in FIRST_RUN else title)
                self._parse_dataclass_field(group, field)

    def error(self, message: str):
        raise InputError(f"{message} (--help lists the arguments)")

    def flags_of(self, name: str, value, text) -> list[str]:
        """A recipe's entry as flags, so that types and choices are checked alike.

        A list or mapping of a flag that is given as one text becomes its default, as TRL's parser has it.

        Raises InputError for several values of a flag that takes one.
        """
        if isinstance(text, str):
            return [f"--{name}={text}"]
        parts = text.values() if isinstance(text, dict) else text
        plain = all(isinstance(part, str) for part in parts)
        if isinstance(text, dict) and name in AS_PAIRS and plain and not any("," in part for part in parts):
            return [f"--{name}={joined(text)}"]
        if isinstance(text, list) and self._option_string_actions[f"--{name}"].nargs == "+" and plain:
            return [f"--{name}", *text]
        hint = self.hints[name]
        if type(text) not in [get_origin(part) or part for part in (hint, *get_args(hint))]:
            raise InputError(f"{name!r} {NOT_ONE}, not a {'list' if isinstance(text, list) else 'mapping'}")
        self.set_defaults(**{name: value})
        return []


def fields_by_class(argument_class: type) -> dict[str, list[Field]]:
    """The flags of a dataclass of arguments, those of its own (and of this project's bases) first, then the library's.

    Returns:
        By title: of the class, or the name of the library's class.
    """
    own = (inspect.getdoc(argument_class) or argument_class.__name__).splitlines()[0].rstrip(".")
    found: dict[str, list[Field]] = {own: []}
    for field in fields(argument_class):
        owner = next(base for base in argument_class.__mro__ if field.name in vars(base).get("__annotations__", ()))
        ours = owner.__module__.startswith(__package__.partition(".")[0])
        if field.init:
            title = own if ours else f"{owner.__name__} of {owner.__module__.partition('.')[0]}"
            found.setdefault(title, []).append(field)
    return found


def parse(argument_classes: tuple[type, ...], argv: list[str]) -> tuple:
    """Typed arguments from flags, or from a recipe (a file of arguments) that further flags may change. Raises
    InputError for a missing file, or a key that is no flag.
    """
    parser = ArgumentParser(argument_classes)
    known = {action.dest for action in parser._actions}
    for flag in argv:
        name = flag.removeprefix("--").partition("=")[0].replace("-", "_")
        if flag.startswith("--") and name in SUCCESSORS and name not in known:
            raise InputError(f"--{name} is no flag here: use {SUCCESSORS[name]}")
    if argv and Path(argv[0]).suffix in RECIPE_SUFFIXES:
        path, argv = Path(argv[0]), argv[1:]
        recipe = []
        for name, (value, text) in read_entries(path).items():
            if name not in known:
                instead = f"no argument here: use {SUCCESSORS[name]}" if name in SUCCESSORS else None
                raise InputError(f"{path}: {name!r} is {instead or 'not an argument; --help lists them'}")
            try:
                recipe += parser.flags_of(name, value, text)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        argv = recipe + argv  # later flags win
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return tuple(parsed)


def read_recipe(path: Path) -> dict:
    """A recipe's arguments by name; see `read_entries`."""
    return {name: value for name, (value, _) in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, tuple]:
    """The entries of a YAML (or JSON) file of arguments (`configs/recipes/`): by name the value, and its text as it stands there.

    The text of a list or mapping is one of texts.

    Raises InputError if it is missing, cannot be read, or holds anything but arguments, each once and with a value.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            root = from_json(json.loads(text, object_pairs_hook=Pairs))  # a dict would keep the last of twins
        else:
            root = from_yaml(yaml.compose(text, Loader=yaml.SafeLoader))
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(root, Pairs) or not root:
        raise InputError(f"{path}: expected arguments, each as `name: value`")
    try:
        values, texts = checked(root)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return {name: (values[name], texts[name]) for name in values}


class Pairs(tuple):
    """The entries of a mapping as they stand in a file, twins included."""


def from_yaml(node: yaml.Node | None):
    """`Pairs`, lists, and of what is single its value and its text."""
    constructor = yaml.constructor.SafeConstructor()
    if isinstance(node, yaml.CollectionNode) and node.tag not in COLLECTIONS:
        raise yaml.constructor.ConstructorError(problem=f"{node.tag} is not read", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return Pairs((constructor.construct_object(name, deep=True), from_yaml(value)) for name, value in node.value)
    if isinstance(node, yaml.SequenceNode):
        return [from_yaml(value) for value in node.value]
    return None if node is None else (constructor.construct_object(node), node.value)


def from_json(value):
    """As `from_yaml`."""
    if isinstance(value, Pairs):
        return Pairs((name, from_json(part)) for name, part in value)
    if isinstance(value, list):
        return [from_json(part) for part in value]
    return value, value if isinstance(value, str) else json.dumps(value)


def checked(part, name: str = "") -> tuple:
    """The value and the text of an entry, a list and a mapping by their parts. Raises InputError for a part that is
    null, a date or the like, or in a mapping twice.
    """
    if isinstance(part, Pairs):
        names = [name for name, _ in part]
        for name in names:
            if not isinstance(name, str):
                raise InputError(f"{name!r} {NOT_ONE}")
            if names.count(name) > 1:
                raise InputError(f"{name!r} is there twice")
        both = {name: checked(value, name) for name, value in part}
        return {name: value for name, (value, _) in both.items()}, {name: text for name, (_, text) in both.items()}
    if isinstance(part, list):
        both = [checked(value, name) for value in part]
        return [value for value, _ in both], [text for _, text in both]
    value, text = part
    if value is None:
        raise InputError(f"{name!r} has no value (a text that begins with # needs quotes)")
    if not isinstance(value, str | int | float | bool):
        raise InputError(f"{name!r} {NOT_ONE}")
    return value, text


def interrupt(signum: int, frame) -> None:
    """What SIGTERM does where no training listens (`interruption.StopOnSignal`)."""
    raise Interrupted(signum)


def leave_process_group() -> None:
    """End what the processes of a run share. Left to the interpreter's exit, its threads can abort a run that is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run(main: Callable[[list[str]], None]) -> None:
    """Run a script: an exception becomes one line on standard error and exit code 1, unless `--debug` is given."""
    argv = sys.argv[1:]
    # transformers has a --debug with a value; alone it is ours.
    alone = [i for i, flag in enumerate(argv) if flag == "--debug" and (argv[i + 1 :] or ["--"])[0].startswith("-")]
    argv = [flag for i, flag in enumerate(argv) if i not in alone]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    for name in ("httpx", "httpx2", "urllib3", "filelock", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_warning()
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main(argv)
        leave_process_group()
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # all processes stop together
            print(str(error) or "SIGINT: stopped", file=sys.stderr)
        if isinstance(error, Interrupted):
            leave_process_group()
        sys.exit(128 + getattr(error, "signum", signal.SIGINT))
    except Exception as error:
        source = wait_for_main_process()
        if alone:
            traceback.print_exc()
            sys.exit(1)
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(
            f"error: {source}{text}"
            + ("" if isinstance(error, InputError) else f" [{type(error).__name__}; see --debug]")
        )

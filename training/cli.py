"""From a command line to typed arguments, and from an exception to one line."""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import InputError, Interrupted
from .processes import wait_for_main_process

logger = logging.getLogger(__name__)

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


# Flags of the original scripts and of run_clm.py that are none here, and what to write instead.
SUCCESSORS = {
    "model_type": "--config_name with a file of configs/, or --model_name_or_path",
    "cache_dir": "the environment variable HF_HOME",
    "token": "`hf auth login`, or the environment variable HF_TOKEN",
    "use_auth_token": "`hf auth login`, or the environment variable HF_TOKEN",
    "validation_split_percentage": "a split or file of its own: --validation_split, --validation_file",
    "low_cpu_mem_usage": "nothing: models are always loaded so",
    "use_fast_tokenizer": "nothing: tokenizers are always the fast ones",
    "model": "--model_name_or_path",
    "from_pretrained": "--model_name_or_path (first: latent-cot convert --model FOLDER OUT)",
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
}


class OneLineParser(HfArgumentParser):
    """Bad flags end in one line, not in the list of all flags."""

    def error(self, message: str):
        raise InputError(f"{message} (--help lists the arguments)")


def parse(argument_classes: tuple[type, ...], argv: list[str]) -> tuple:
    """Typed arguments from flags, or from a recipe (a file of arguments) that further flags may change.

    Args:
        argument_classes: dataclasses; no two share a field.
        argv: `recipe.yaml --seed 1`, or flags alone.

    Raises:
        InputError: for a missing file, or a key that is no flag.
    """
    parser = OneLineParser(argument_classes)
    known = {action.dest for action in parser._actions}
    for flag in argv:
        name = flag.removeprefix("--").partition("=")[0]
        if flag.startswith("--") and name in SUCCESSORS and name not in known:
            raise InputError(f"--{name} is no flag here: use {SUCCESSORS[name]}")
    for action in parser._actions:
        if action.type is string_to_bool:  # a flag that is off unless given may be given bare
            action.nargs, action.const = "?", True
    if argv and Path(argv[0]).suffix in RECIPE_SUFFIXES:
        path, argv = Path(argv[0]), argv[1:]
        entries = read_entries(path)
        for name, _, _ in entries:
            if name in SUCCESSORS and name not in known:
                raise InputError(f"{path}: {name!r} is no argument here: use {SUCCESSORS[name]}")
            if name not in known:
                raise InputError(f"{path}: {name!r} is not an argument; --help lists them")
        # As flags, so that types and choices are checked alike; later flags win.
        argv = [f"--{name}={text}" for name, _, text in entries] + argv
    return parser.parse_args_into_dataclasses(argv)


def read_recipe(path: Path) -> dict[str, str | int | float | bool]:
    """A recipe's arguments by name; see `read_entries`."""
    return {name: value for name, value, _ in read_entries(path)}


def read_entries(path: Path) -> list[tuple[str, str | int | float | bool, str]]:
    """The entries of a YAML (or JSON) file of arguments (`configs/recipes/`): name, value, and the value as it stands there.

    Raises:
        InputError: if it is missing, cannot be read, or holds anything but arguments, each once and with a value.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            pairs = json.loads(text, object_pairs_hook=tuple)  # any other list stays a list
            pairs = pairs if isinstance(pairs, tuple) else ()
            read = [(name, value, value if isinstance(value, str) else json.dumps(value)) for name, value in pairs]
        else:
            read = read_yaml(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not {path.suffix[1:].upper()}: {error}") from error
    if not read:
        raise InputError(f"{path}: expected arguments, each as `name: value`")
    for name, value, _ in read:
        if value is None:
            raise InputError(f"{path}: {name!r} has no value (a text that begins with # needs quotes)")
        if not isinstance(name, str) or not isinstance(value, str | int | float | bool):
            raise InputError(f"{path}: {name!r} must be a text, a number, true or false")
        if sum(name == other for other, _, _ in read) > 1:
            raise InputError(f"{path}: {name!r} is there twice")
    return read


def read_yaml(text: str) -> list[tuple] | None:
    """The entries of a YAML mapping, twins included (a loader would keep the last); None for anything else."""
    root, constructor = yaml.compose(text, Loader=yaml.SafeLoader), yaml.constructor.SafeConstructor()
    if not isinstance(root, yaml.MappingNode):
        return None
    construct = partial(constructor.construct_object, deep=True)
    return [(construct(name), construct(value), value.value) for name, value in root.value]


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

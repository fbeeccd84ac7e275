"""From a command line to typed arguments, and from an exception to one line."""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import InputError

logger = logging.getLogger(__name__)

RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


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
    for action in parser._actions:
        if action.type is string_to_bool:  # a flag that is off unless given may be given bare
            action.nargs, action.const = "?", True
    if argv and Path(argv[0]).suffix in RECIPE_SUFFIXES:
        path, argv = Path(argv[0]), argv[1:]
        recipe = read_recipe(path)
        known = {action.dest for action in parser._actions}
        for key in recipe:
            if key not in known:
                raise InputError(f"{path}: {key!r} is not an argument; --help lists them")
        parser.set_defaults(**recipe)
        for action in parser._actions:
            action.required = action.required and action.dest not in recipe
    return parser.parse_args_into_dataclasses(argv)


def read_recipe(path: Path) -> dict:
    """A YAML (or JSON) file of arguments: `configs/recipes/`.

    Raises:
        InputError: if it is missing, cannot be read, or holds anything but arguments, each once.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        pairs = json.loads(text, object_pairs_hook=list) if path.suffix == ".json" else yaml_pairs(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{path}: expected arguments, each as `name: value`")
    for key, value in pairs:
        if isinstance(value, dict | list):
            raise InputError(f"{path}: {key!r} must be a text, a number, true or false")
        if sum(key == other for other, _ in pairs) > 1:
            raise InputError(f"{path}: {key!r} is there twice")
    return dict(pairs)


def yaml_pairs(text: str) -> list[tuple[str, object]] | None:
    """The entries of a YAML mapping, twins included (a loader would keep the last); None for anything else."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return None
    constructor = yaml.constructor.SafeConstructor()
    return [
        (str(constructor.construct_object(key, deep=True)), constructor.construct_object(value, deep=True))
        for key, value in root.value
    ]


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
    try:
        main(argv)
        # Left to the interpreter's exit, a process group's threads can abort a run that has done everything.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        if alone:
            traceback.print_exc()
            sys.exit(1)
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(
            f"error: {text}" + ("" if isinstance(error, InputError) else f" [{type(error).__name__}; see --debug]")
        )

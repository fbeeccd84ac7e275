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
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .errors import InputError

logger = logging.getLogger(__name__)


class OneLineParser(HfArgumentParser):
    """Bad flags end in one line, not in the list of all flags."""

    def error(self, message: str):
        raise InputError(f"{message} (--help lists the arguments)")


def parse(argument_classes: tuple[type, ...], argv: list[str]) -> tuple:
    """Typed arguments from flags, or from a JSON file of arguments that further flags may change.

    Args:
        argument_classes: dataclasses; no two share a field.
        argv: `recipe.json --seed 1`, or flags alone.

    Raises:
        InputError: for a missing file, or a key that is no flag.
    """
    parser = OneLineParser(argument_classes)
    for action in parser._actions:
        if action.type is string_to_bool:  # a flag that is off unless given may be given bare
            action.nargs, action.const = "?", True
    if argv and argv[0].endswith(".json"):
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
    """A JSON file of arguments.

    Raises:
        InputError: if it is missing or not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: expected a JSON object of arguments")
    return recipe


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

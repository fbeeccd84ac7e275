"""Which model a command is about: the same flags in all of them."""

import argparse
from pathlib import Path

import latent_cot


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add `--model`, which has to be given where there is no default, and `--revision`."""
    help = "a folder or a name on the Hub" + (f" (default: {default})" if default else "")
    parser.add_argument("--model", required=default is None, default=default, help=help)
    parser.add_argument("--revision", default="main", help="branch, tag or commit on the Hub")


def shipped_checkpoints() -> Path | None:
    """The folder of the checkpoints that come with a clone; None where the package is installed without one."""
    package = Path(latent_cot.__file__).resolve().parent
    folder = package.parent / "checkpoints"
    return folder if package.name == "models" and folder.is_dir() else None

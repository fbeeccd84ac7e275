"""Make of a checkpoint the folder that a Hub page would hold: weights, tokenizer, card, and the code that reads them.

    python -m training.export checkpoints/pccot-gpt2-chain outputs/export/pccot-gpt2-chain

Checkpoints inside this repository come without code, since `models/` is beside them.
"""

import argparse
import logging
import shutil
from pathlib import Path

from latent_cot.training.checkpoints.read import load
from latent_cot.training.checkpoints.write import files_in, write_manifest, write_model_files
from latent_cot.training.cli import run
from latent_cot.training.errors import InputError

logger = logging.getLogger(__name__)


def export(name: str, out: Path, revision: str = "main", base_model: str | None = None) -> None:
    """Write the folder; adapters are merged.

    Args:
        name: a folder or a name on the Hub.
        out: a new or empty folder.
        revision: branch, tag or commit.
        base_model: of an adapter, instead of the one that the checkpoint names.

    Raises:
        InputError: for a checkpoint that cannot be read, or a folder that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    model, tokenizer = load(name, revision, base_model)
    write_model_files(model, tokenizer, out)
    for file in ("README.md", "all_results.json"):
        if (Path(name) / file).is_file():
            shutil.copy(Path(name) / file, out / file)
    write_manifest(out, files_in(out))
    logger.info("wrote %s", out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("name", help="a folder or a name on the Hub")
    parser.add_argument("out", type=Path)
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    args = parser.parse_args(argv)
    export(args.name, args.out, args.revision)


if __name__ == "__main__":
    run(main)

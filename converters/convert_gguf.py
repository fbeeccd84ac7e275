"""Write the backbone in a GGUF file as an ordinary checkpoint of transformers, dequantised.

    python -m training.convert_gguf FILE.gguf OUT

The scripts take a GGUF file as it is (`--gguf_file`). Needs: pip install '.[gguf]'
"""

import argparse
import logging
from pathlib import Path

import torch

from latent_cot.training.checkpoints.load_gguf import gguf_config, load_gguf, load_gguf_tokenizer, open_gguf
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.cli import run
from latent_cot.training.data.tokenization import set_special_ids
from latent_cot.training.errors import InputError

logger = logging.getLogger(__name__)


def convert(path: Path, out: Path) -> None:
    """Write the checkpoint.

    Args:
        path: a GGUF file.
        out: a new or empty folder.

    Raises:
        InputError: for a file that cannot be read exactly, or a folder that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    file = open_gguf(str(path.parent), path.name)
    tokenizer, model = load_gguf_tokenizer(file), load_gguf(file, gguf_config(file), dtype=torch.float32)
    set_special_ids(model, tokenizer)
    write_model_files(model, tokenizer, out)
    logger.info("wrote %s", out)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.convert_gguf", description=__doc__)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("out", type=Path, help="a new or empty folder")
    args = parser.parse_args(argv)
    convert(args.file, args.out)


if __name__ == "__main__":
    run(main)

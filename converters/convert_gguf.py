"""The backbone in a GGUF file as an ordinary checkpoint of transformers, dequantised (`latent-cot convert`).

The scripts take a GGUF file as it is (`--gguf_file`). Needs: pip install '.[gguf]'
"""

import logging
from pathlib import Path

import torch

from latent_cot.training.checkpoints.load_gguf import gguf_config, load_gguf, load_gguf_tokenizer, open_gguf
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.tokenization import set_special_ids
from latent_cot.training.errors import InputError

logger = logging.getLogger(__name__)

OPTIONS: dict[str, dict] = {}


def recognizes(name: str, revision: str = "main") -> bool:
    return name.endswith(".gguf") and Path(name).is_file()


def convert(name: str, out: Path, revision: str = "main") -> None:
    """Write the checkpoint.

    Args:
        name: a GGUF file.
        out: a new or empty folder.

    Raises:
        InputError: for a file that cannot be read exactly, or a folder that is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another folder")
    path = Path(name)
    file = open_gguf(str(path.parent), path.name)
    tokenizer, model = load_gguf_tokenizer(file), load_gguf(file, gguf_config(file), dtype=torch.float32)
    set_special_ids(model, tokenizer)
    write_model_files(model, tokenizer, out)
    logger.info("wrote %s", out)

"""A checkpoint as the folder that a Hub page would hold: weights, tokenizer, card, and the code that reads them."""

import logging
import shutil
from pathlib import Path

from latent_cot.training.checkpoints.read import load
from latent_cot.training.checkpoints.write import files_in, write_manifest, write_model_files
from latent_cot.training.errors import InputError

logger = logging.getLogger(__name__)


def export(name: str, out: Path, revision: str = "main", base_model: str | None = None) -> None:
    """Write the folder; adapters are merged. Raises InputError for a checkpoint that cannot be read, or a folder that
    is in use.
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

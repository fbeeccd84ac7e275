"""A checkpoint as the original PCCoT code publishes it, as one that loads by itself (`latent-cot convert`).

The result is a merged safetensors checkpoint with every setting in its `config.json`.
"""

from pathlib import Path

from latent_cot.training.checkpoints.checks import find_file
from latent_cot.training.checkpoints.lora import ADAPTER_CONFIG
from latent_cot.training.checkpoints.read import SETTINGS

from .export import export

OPTIONS = {
    "base_model": {"help": "of PCCoT: folder or name of the base model, if not the one that the checkpoint names"},
}


def recognizes(name: str, revision: str = "main") -> bool:
    """The file in which the original keeps half of the settings, or adapters, which are merged."""
    return any(find_file(name, file, revision) for file in (SETTINGS, ADAPTER_CONFIG))


def convert(name: str, out: Path, revision: str = "main", *, base_model: str | None = None) -> None:
    """Write the converted checkpoint; see `export`."""
    export(name, out, revision, base_model)

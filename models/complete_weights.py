"""What is checked while weights are loaded, by `from_pretrained` of whomever: that a checkpoint is the model's, and whole.

transformers reports a missing tensor in a table and goes on with random numbers, and takes whole numbers for weights.
And where there is no checkpoint: that random weights are drawn as the backbone draws its own.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import __version__

from .mixin_base import ModelBase

# What makes PCCoT's latents of hidden states, by the setting that adds it: a checkpoint without the setting lacks it.
NEW_PARTS = {"use_projection": "prj", "scale_latents": "latent_gain", "latent_update": "latent_update"}
LONGEST_HEADER = 100_000_000  # bytes; what safetensors allows


class CompleteWeightsMixin(ModelBase):
    """A model that does not load if anything of it is missing, or is of another shape or kind than it needs."""

    def _initialize_weights(self, module, *args):
        # Without transformers' shortcut for code from elsewhere: it takes a module without weights of its own for done, such as
        # GPT-2's attention, and that is where GPT-2 draws its residual projections anew, with less spread.
        super()._initialize_weights(module)

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, checkpoint_files, *args, **kwargs):
        """transformers' own, between two checks. The only place that sees the files of every way to load, also an adapter's.

        Raises:
            ValueError: for a damaged file, or a tensor that is missing, left over, or of another shape or kind; names the
                first one.
        """
        files = [Path(file) for file in checkpoint_files or () if str(file).endswith(".safetensors")]
        check_files(model, files)
        info, *rest = super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        check_names(model, info, files[0].parent if files else None)
        return info, *rest


def read_header(path: Path) -> dict[str, dict]:
    """What a safetensors file says of its tensors: `dtype`, `shape` and `data_offsets`, by name.

    Raises:
        ValueError: for a file that is damaged or shorter than it says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        complete = path.stat().st_size == 8 + length + end
        shapes_are_whole = all(isinstance(size, int) for tensor in header.values() for size in tensor["shape"])
        kinds_are_text = all(isinstance(tensor["dtype"], str) for tensor in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, its list of tensors cannot be read") from error
    if not (complete and shapes_are_whole and kinds_are_text):
        raise ValueError(f"{path}: damaged or cut off, its size is not that of its tensors")
    return header


def check_files(model: torch.nn.Module, files: list[Path]) -> None:
    """Raises ValueError for a damaged file, and for a tensor of another shape or kind than the model's. Reads headers alone.

    Shapes are compared before memory is taken for them.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return  # its tensors are packed
    wanted = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    for path in files:
        for name, tensor in read_header(path).items():
            found = next(
                (wanted[key] for key in (name, prefix + name, name.removeprefix(prefix)) if key in wanted), None
            )
            numbers = tensor["dtype"].startswith(("F", "BF"))
            if not numbers and (found is not None or ".lora_" in name or name.endswith("trainable_tokens_delta")):
                raise ValueError(
                    f"{path}: {name} is of the type {tensor['dtype']}, and weights are floating-point numbers"
                )
            if found is not None and found.is_meta and list(found.shape) != tensor["shape"]:
                raise ValueError(
                    f"{path}: {name} has the shape {tensor['shape']}, and config.json makes it {list(found.shape)}"
                )


def check_names(model, info, folder: Path | None) -> None:
    """Raises ValueError for tensors that a checkpoint lacks, or has too many.

    A checkpoint may lack what its own configuration does not have (`NEW_PARTS`), and a backbone's may hold what is not used.
    Transformers 5.17 finds no trained rows of an adapter, and no `modules_to_save`.

    Args:
        info: transformers' `LoadStateDictInfo`; not changed.
        folder: where the files are.
    """
    info = copy.copy(info)
    model._adjust_missing_and_unexpected_keys(info)  # leaves out what is of no account
    missing, unexpected, where = set(info.missing_keys), set(info.unexpected_keys), folder or "the checkpoint"
    if getattr(model, "_hf_peft_config_loaded", False):
        missing = {name for name in missing if ".lora_" in name}
        if model.config.tie_word_embeddings:  # the head has the embeddings' rows
            unexpected = {name for name in unexpected if not name.startswith("lm_head.token_adapter.")}
        if unexpected and __version__.startswith("5.17."):
            raise ValueError(
                f"{where}: transformers {__version__} loses trained rows and the gain of adapters; 5.18 reads them, and so do "
                "the scripts, `example.py` and `latent_cot.training.checkpoints.read.load()`"
            )
    else:
        for name, source in getattr(model, "all_tied_weights_keys", {}).items():
            if not {name, source} <= missing:
                missing -= {name, source}
        own = {} if folder is None else config_of(folder)
        foreign = folder is not None and own.get("model_type") != model.config.model_type
        for setting, part in NEW_PARTS.items():
            if foreign or (folder is not None and not own.get(setting)):
                missing = {name for name in missing if part not in name.split(".")}
        if foreign:
            unexpected = set()
        if not hasattr(model, "base_model_class"):
            unexpected.discard("lm_head.weight")  # a base model from a whole model's checkpoint
    for names, words in (
        (missing, "lacks the tensor"),
        (unexpected, "holds a tensor that the model has no place for:"),
    ):
        if names:
            first, more = min(names), f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(
                f"{where}: the checkpoint {words} {first}{more}; it is damaged, or config.json is another's"
            )


def config_of(folder: Path) -> dict:
    """What a folder's `config.json` holds; nothing where there is none to read."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}

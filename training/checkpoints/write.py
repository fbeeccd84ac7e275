"""How a finished model is written: weights, configuration, code, tokenizer and `example.py`."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.training.arguments import LoraArguments

from .lora import merge_adapter, save_adapters

EXAMPLE = Path(__file__).with_name("example.py")  # needs nothing of this package


def write_final_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    lora: LoraArguments,
    weights: dict | None = None,
) -> None:
    """A complete checkpoint: weights, configuration, code, tokenizer and `example.py`.

    A LoRA run (`model` is a `PeftModel`) saves its adapters and the base model that they belong to in `adapter/`, which loads by itself, and
    beside it the merged model.

    Args:
        weights: the model's state, where it had to be collected from several processes.
    """
    # The Trainer switches the cache off for its own forward passes; answering wants it.
    model.config.use_cache = True
    if lora.use_peft:
        adapter = folder / "adapter"
        save_adapters(model, adapter, weights)  # the resized vocabulary is in the base model
        model, weights = model.unload(), None
        write_model_files(model, tokenizer, adapter)
        if not lora.save_merged:
            return
        model = merge_adapter(model, adapter)
    write_model_files(model, tokenizer, folder, weights)


def write_model_files(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict | None = None
) -> None:
    """Weights, configuration, code, tokenizer and `example.py`: all that a checkpoint is."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    shutil.copy(EXAMPLE, folder / EXAMPLE.name)

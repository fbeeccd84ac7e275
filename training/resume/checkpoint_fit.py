"""Whether a checkpoint is of a run like the one that would go on from it, and whether a tokenizer is the weights' own.

Weights fit whatever has their shape: with other token ids, another number of passes or other heads, training would go on
without an error, from a model that is none.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.training.checkpoints.lora import ADAPTER_CONFIG
from latent_cot.training.errors import InputError

from .find_checkpoint import SHARDED_WEIGHTS

# What a run of iCoT itself writes as it goes, and what is about files and not about the model.
NOT_COMPARED = {"num_internalized_tokens", "num_chain_tokens", "position_gap", "filler_mode", "num_fillers"}
NOT_COMPARED |= {
    "transformers_version",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "use_cache",
}
# What torch adds to an optimiser's settings from release to release.
SWITCHES = {"initial_lr", "decoupled_weight_decay", "foreach", "fused", "maximize", "capturable", "differentiable"}


def check_fit(checkpoint: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError for a checkpoint of another model than this run's: other adapters, configuration or token ids."""
    flag = f"--resume_from_checkpoint {checkpoint}"
    adapts = hasattr(model, "peft_config")
    sharded = any(path for name in SHARDED_WEIGHTS for path in checkpoint.glob(name))  # where adapters leave no sign
    if not sharded and adapts != (checkpoint / ADAPTER_CONFIG).is_file():
        holds, trains = ("a whole model", "adapters") if adapts else ("adapters (--use_peft)", "a whole model")
        raise InputError(f"{flag}: it holds {holds}, and this run trains {trains}")
    if (checkpoint / "tokenizer.json").is_file():
        own = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab(with_added_tokens=True)
        if (moved := moved_token(own, tokenizer.get_vocab())) is not None:
            raise InputError(
                f"{flag}: its tokenizer has other ids than this run's ({moved}); resume with its own run's data"
            )
    if (checkpoint / "config.json").is_file():
        saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        if (found := difference(saved, model.config)) is not None:
            raise InputError(
                f"{flag}: it was made with {found}; resume with its own run's arguments, or begin a new run from it "
                "(--model_name_or_path)"
            )


def check_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, asked: str) -> None:
    """Raises InputError for a checkpoint of another kind of optimiser: its settings would be put into this one.

    Args:
        asked: `--optim`.
    """
    path = checkpoint / "optimizer.pt"
    if not path.is_file():
        return
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["param_groups"]
    own = optimizer.param_groups
    names = [{*group} - SWITCHES for groups in (saved, own) for group in groups]
    if len(saved) != len(own) or any(other != names[0] for other in names):
        raise InputError(
            f"--resume_from_checkpoint {checkpoint}: its optimizer is another one than --optim {asked}; resume with the --optim "
            "of its own run"
        )


def difference(saved: dict, config: PreTrainedConfig) -> str | None:
    """The first field in which a configuration file differs from a configuration, with both values; None if none does."""
    if saved.get("model_type") != config.model_type:
        return f"a {saved.get('model_type')} model, and this run has a {config.model_type}"
    # Through a file, as the saved one: JSON knows no tuples, and defaults are left out.
    here = type(config).from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict()
    there = type(config).from_dict(saved).to_dict()
    for name in sorted(there.keys() - NOT_COMPARED):
        if there[name] != here.get(name):
            return f"{name}={there[name]}, and this run has {here.get(name)}"
    return None


def special_ids(config: PreTrainedConfig) -> dict[str, int]:
    """The ids that a configuration holds of its family's tokens, by field."""
    return {name: held for name in getattr(config, "special_tokens", {}) if (held := getattr(config, name)) is not None}


def check_vocabulary(
    own: PreTrainedTokenizerBase | None,
    tokenizer: PreTrainedTokenizerBase,
    model: str | None,
    held: dict[str, int],
    config: PreTrainedConfig,
) -> None:
    """Raises InputError for a tokenizer that gives the tokens of a trained model other ids than it was trained with.

    Args:
        own: the model's, where it has another one.
        tokenizer: what the run has (`--tokenizer_name`, `processing_class`), with all special tokens.
        model: its name.
        held: the model's `special_ids` before the tokenizer was set up.
        config: the model's, after that.
    """
    moved = None if own is None else moved_token(own.get_vocab(), tokenizer.get_vocab())
    for name, number in held.items():
        if moved is None and getattr(config, name) != number:
            moved = f"{name} is {number}, and here {getattr(config, name)}"
    if moved is not None:
        raise InputError(
            f"--tokenizer_name: {model or 'the model'} was trained with other token ids ({moved}); leave it (processing_class) "
            "out to use the model's own tokenizer"
        )


def moved_token(own: dict[str, int], other: dict[str, int]) -> str | None:
    """A token that stands for another id, or whose id stands for another token; None if there is none.

    Tokens that only one of the two has are no matter as long as their ids are free in the other.
    """
    names = {number: token for token, number in other.items()}
    for token, number in sorted(own.items(), key=lambda item: item[1]):
        if other.get(token, number) != number:
            return f"{token!r} is {number}, and here {other[token]}"
        if names.get(number, token) != token:
            return f"{number} is {token!r}, and here {names[number]!r}"
    return None

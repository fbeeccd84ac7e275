"""LoRA: configured, saved and merged; the rows of new tokens and the projection are trained beside the adapters."""

import json
from pathlib import Path
from types import MethodType

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_cot.complete_weights import NEW_PARTS
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.errors import InputError, check_installed

from .checks import load_adapter, one_clear_error

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# All that is read of an adapter's configuration: its other fields can name modules to import.
LORA_FIELDS = (
    *("r", "lora_alpha", "target_modules", "modules_to_save", "trainable_token_indices", "fan_in_fan_out", "bias"),
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
)


def add_adapters(model: PreTrainedModel, args: LoraArguments, fast: bool = True):
    """The model with LoRA adapters.

    Args:
        fast: with the layers of `lora_fast.py` instead of PEFT's own; the numbers and the files are the same.

    Returns:
        A `PeftModel`; only the adapters, the rows of the family's tokens (which no pretrained model knows), of padding and
        of the end of sequence (the original's choice), and `modules_to_save` require gradients.
    """
    if not (args.save_base or model.name_or_path):
        raise InputError(
            "--save_base false: the weights below the adapters would be those of no checkpoint (drawn at random, or with "
            "positions added); leave the flag out"
        )
    adapters = lora_config(model, args)
    from peft import get_peft_model

    from .lora_fast import FASTER_LINEAR, use_fast_trainable_tokens

    if fast:
        adapters._register_custom_module(FASTER_LINEAR)  # PEFT's door for layers of one's own
    try:
        adapted = get_peft_model(model, adapters)
    except ValueError as error:
        raise InputError(f"--lora_target_modules {'-'.join(adapters.target_modules)}: {error}") from error
    if fast:
        use_fast_trainable_tokens(adapted)
    adapted.save_pretrained = MethodType(save_with_config, adapted)
    return adapted


def save_with_config(adapted, folder: str | Path, **options) -> None:
    """`PeftModel.save_pretrained`, without a copy of the vocabulary but with the configuration that the adapters need."""
    type(adapted).save_pretrained(adapted, folder, **({"save_embedding_layers": False} | options))
    if (Path(folder) / ADAPTER_CONFIG).is_file():  # not in a process that does not write
        adapted.get_base_model().config.save_pretrained(folder)
        finish_adapter_config(Path(folder) / ADAPTER_CONFIG, adapted.get_base_model())


def lora_config(model: PreTrainedModel, args: LoraArguments, with_rows: bool = True):
    """PEFT's configuration of the adapters that `add_adapters` describes.

    Args:
        with_rows: False leaves out the rows of the family's tokens, of padding and of the end of sequence.
    """
    check_installed("peft", "--use_peft")
    from peft import LoraConfig

    targets = args.lora_target_modules.split("-") if args.lora_target_modules else linear_names(model)
    saved = args.lora_modules_to_save.split("-") if args.lora_modules_to_save else []
    names = {module: name for name, module in model.named_modules()}
    config = model.config
    between = [part for part in NEW_PARTS.values() if hasattr(model.base_model, part)]  # frozen, it would stay as drawn
    saved += [part for part in between if part not in saved]
    head = names[model.get_output_embeddings()].rpartition(".")[2]
    for flag, chosen in (("lora_modules_to_save", saved), ("lora_target_modules", targets)):
        if config.tie_word_embeddings and head in chosen:
            raise InputError(
                f"--{flag} {head}: it shares its matrix with the embeddings, which adapters cannot; the rows of new tokens are "
                "trained anyway"
            )
    fields = (*getattr(config, "special_tokens", {}), "pad_token_id", "eos_token_id")
    held = (getattr(config, name) for name in fields)
    token_ids = list(dict.fromkeys(token for token in held if isinstance(token, int)))
    rows = {names[model.get_input_embeddings()].rpartition(".")[2]: token_ids}
    if not config.tie_word_embeddings:
        rows[head] = token_ids
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        trainable_token_indices=rows if token_ids and with_rows else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of the linear layers inside the backbone's blocks: `c_attn`, `q_proj`, ..."""
    found = {
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and ".prj." not in f".{name}."
    }
    return sorted(found)


def save_adapters(model: nn.Module, folder: Path, weights: dict | None = None) -> None:
    """Write the adapters of a `PeftModel`, without a copy of the vocabulary.

    Rows that input and output matrix share are named for both: transformers before 5.23 takes the second for missing.

    Args:
        weights: the model's state, where it had to be collected from several processes.
    """
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    path = folder / ADAPTER_WEIGHTS
    saved = load_file(path)
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    for name, layer in model.named_modules():
        if isinstance(layer, TrainableTokensLayer):
            (rows,) = layer.trainable_tokens_delta.values()
            saved.setdefault(f"{name}.trainable_tokens_delta", rows.detach().cpu().clone())
    save_file(saved, path, metadata={"format": "pt"})


def finish_adapter_config(path: Path, base: PreTrainedModel) -> None:
    """Have an adapter's configuration name the model that it belongs to.

    A base model in a folder becomes `./name`: the folder is looked for beside the adapter's own, or asked for (`read.py`). PEFT's
    Auto classes build a stock backbone for any `task_type`, which would not think; without one they go by `auto_mapping`,
    and refuse the class of a package that they were not told to import.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT writes a set, in another order in every process
    name = str(config.get("base_model_name_or_path") or "")
    if name and (Path(name).is_absolute() or Path(name).is_dir()):
        config["base_model_name_or_path"] = f"./{Path(name).resolve().name}"
    if getattr(base.config, "family", None) is not None:
        config |= {
            "task_type": None,
            "auto_mapping": {"base_model_class": type(base).__name__, "parent_library": "latent_cot"},
        }
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the LoRA weights of a folder merged into its own. Raises InputError for a damaged adapter, or one
    that does not fit this model.
    """
    from peft import LoraConfig, PeftModel

    fields = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    with one_clear_error(str(folder), "adapter"):
        lora = LoraConfig(**{name: fields[name] for name in LORA_FIELDS if fields.get(name) is not None})
        lora.inference_mode = True
        adapted = PeftModel(model, lora)
        load_adapter(adapted, folder, folder / ADAPTER_WEIGHTS)
        merged = adapted.merge_and_unload()
    return merged.requires_grad_(True)  # PEFT had frozen them

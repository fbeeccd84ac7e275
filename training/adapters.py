"""LoRA: low-rank adapters, with the rows of new tokens and the projection trained beside them."""

import importlib.util

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .arguments import LoraArguments
from .errors import InputError


def add_adapters(model: PreTrainedModel, args: LoraArguments):
    """The model with LoRA adapters.

    Args:
        model: its vocabulary already has its final size.
        args: the adapters' settings.

    Returns:
        A `PeftModel`; only the adapters, the rows of the thought span's tokens (which no pretrained model knows) and
        `modules_to_save` require gradients.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError("--use_peft needs: pip install peft")
    from peft import LoraConfig, get_peft_model

    from .lora_layers import use_faster_layers

    targets = args.lora_target_modules.split("-") if args.lora_target_modules else linear_names(model)
    saved = args.lora_modules_to_save.split("-") if args.lora_modules_to_save else []
    if getattr(model.config, "use_projection", False) and "prj" not in saved:
        saved.append("prj")
    config = model.config
    new_token_ids = [
        getattr(config, name)
        for name in ("bot_token_id", "eot_token_id", "latent_token_id")
        if getattr(config, name, None) is not None
    ]
    names = {module: name for name, module in model.named_modules()}
    rows = {names[model.get_input_embeddings()].rpartition(".")[2]: new_token_ids}
    if not config.tie_word_embeddings:
        rows[names[model.get_output_embeddings()].rpartition(".")[2]] = new_token_ids
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        trainable_token_indices=rows if new_token_ids else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        adapted = get_peft_model(model, adapters)
    except ValueError as error:
        raise InputError(f"--lora_target_modules {'-'.join(targets)}: {error}") from error
    use_faster_layers(adapted)
    return adapted


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of the linear layers inside the backbone's blocks: `c_attn`, `q_proj`, ..."""
    found = {
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and ".prj." not in f".{name}."
    }
    return sorted(found)

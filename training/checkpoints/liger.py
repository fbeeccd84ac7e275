"""liger-kernel's norms, rotary embeddings and MLPs in our models (`--use_liger_kernel`)."""

from collections.abc import Callable

from transformers import PreTrainedConfig

from latent_cot.training.errors import InputError
from latent_cot.training.families import stock_config


def register_with_liger(config: PreTrainedConfig) -> None:
    """Register a model type of ours with liger-kernel, under its backbone's entry. Raises InputError where it has no
    kernels for that backbone.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known

    if config.model_type in known:
        return
    backbone = stock_config(config).model_type
    if backbone not in known:
        raise InputError(f"--use_liger_kernel: liger-kernel has no kernels for {config.model_type}; leave the flag out")
    known[config.model_type] = without_losses(known[backbone])


def without_losses(apply: Callable) -> Callable:
    """liger-kernel's function for a backbone, without its losses.

    Its fused cross-entropy replaces a model's whole forward pass, thought included; ours keeps no logits either.
    """

    def apply_layers(rope: bool = True, rms_norm: bool = True, swiglu: bool = True, model=None) -> None:
        apply(
            rope=rope,
            rms_norm=rms_norm,
            swiglu=swiglu,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
            model=model,
        )

    return apply_layers

"""Latent chain-of-thought models for transformers. Importing this package registers them with the Auto classes.

A family is `configuration_*.py` and `modeling_*.py`, and what these import. The folder is flat because a checkpoint on
the Hub takes its code along as files of one folder.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_icot import ICoTConfigMixin, ICoTGPT2Config, ICoTLlamaConfig, ICoTMistralConfig
from .configuration_pccot import (
    PCCoTConfigMixin,
    PCCoTGPT2Config,
    PCCoTLlamaConfig,
    PCCoTMistralConfig,
    PCCoTQwen3Config,
)
from .modeling_icot import (
    ICoTGPT2LMHeadModel,
    ICoTGPT2Model,
    ICoTLlamaForCausalLM,
    ICoTLlamaModel,
    ICoTMistralForCausalLM,
    ICoTMistralModel,
    InternalizedMixin,
)
from .modeling_pccot import (
    LatentThoughtMixin,
    PCCoTGPT2LMHeadModel,
    PCCoTGPT2Model,
    PCCoTLlamaForCausalLM,
    PCCoTLlamaModel,
    PCCoTMistralForCausalLM,
    PCCoTMistralModel,
    PCCoTOutput,
    PCCoTQwen3ForCausalLM,
    PCCoTQwen3Model,
)
from .thinking_pccot import ThinkingModelMixin


def register(model_class: type) -> None:
    """Make a causal language model, its base model and its configuration known to the Auto classes."""
    config_class, base_class = model_class.config_class, model_class.base_model_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, base_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    # ... and have every saved checkpoint carry its code.
    config_class.register_for_auto_class()
    base_class.register_for_auto_class("AutoModel")
    model_class.register_for_auto_class("AutoModelForCausalLM")


register(PCCoTGPT2LMHeadModel)
register(PCCoTLlamaForCausalLM)
register(PCCoTMistralForCausalLM)
register(PCCoTQwen3ForCausalLM)
register(ICoTGPT2LMHeadModel)
register(ICoTLlamaForCausalLM)
register(ICoTMistralForCausalLM)

__all__ = [
    "ICoTConfigMixin",
    "ICoTGPT2Config",
    "ICoTGPT2LMHeadModel",
    "ICoTGPT2Model",
    "ICoTLlamaConfig",
    "ICoTLlamaForCausalLM",
    "ICoTLlamaModel",
    "ICoTMistralConfig",
    "ICoTMistralForCausalLM",
    "ICoTMistralModel",
    "InternalizedMixin",
    "LatentThoughtMixin",
    "PCCoTConfigMixin",
    "PCCoTGPT2Config",
    "PCCoTGPT2LMHeadModel",
    "PCCoTGPT2Model",
    "PCCoTLlamaConfig",
    "PCCoTLlamaForCausalLM",
    "PCCoTLlamaModel",
    "PCCoTMistralConfig",
    "PCCoTMistralForCausalLM",
    "PCCoTMistralModel",
    "PCCoTOutput",
    "PCCoTQwen3Config",
    "PCCoTQwen3ForCausalLM",
    "PCCoTQwen3Model",
    "ThinkingModelMixin",
    "register",
]

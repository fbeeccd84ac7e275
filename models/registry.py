"""The model classes, registered with transformers' Auto classes, and what of this package is public."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .answer_modes import ANSWER_MODES, AnswerMode
from .backbone_pccot import PCCoTModelMixin
from .configuration_icot import ICoTConfigMixin, ICoTGPT2Config, ICoTLlamaConfig, ICoTMistralConfig
from .configuration_pccot import (
    PCCoTConfigMixin,
    PCCoTGPT2Config,
    PCCoTLlamaConfig,
    PCCoTMistralConfig,
    PCCoTQwen3Config,
)
from .configuration_prompt import PromptConfigMixin
from .distillation_pccot import PCCoTOutput
from .modeling_icot import (
    ICoTForCausalLMMixin,
    ICoTGPT2LMHeadModel,
    ICoTGPT2Model,
    ICoTLlamaForCausalLM,
    ICoTLlamaModel,
    ICoTMistralForCausalLM,
    ICoTMistralModel,
)
from .modeling_pccot import (
    PCCoTForCausalLMMixin,
    PCCoTGPT2LMHeadModel,
    PCCoTGPT2Model,
    PCCoTLlamaForCausalLM,
    PCCoTLlamaModel,
    PCCoTMistralForCausalLM,
    PCCoTMistralModel,
    PCCoTQwen3ForCausalLM,
    PCCoTQwen3Model,
)
from .own_base_model import OwnBaseModelMixin


def register(model_class: type[OwnBaseModelMixin]) -> None:
    """Make a causal language model, its base model and its configuration known to the Auto classes."""
    config_class, base_class = model_class.config_class, model_class.base_model_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, base_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    # transformers' Trainer shifts smoothed labels for what this lists, and lm_eval asks it for the kind of a model.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config_class.model_type] = model_class.__name__
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
    "ANSWER_MODES",
    "AnswerMode",
    "ICoTConfigMixin",
    "ICoTForCausalLMMixin",
    "ICoTGPT2Config",
    "ICoTGPT2LMHeadModel",
    "ICoTGPT2Model",
    "ICoTLlamaConfig",
    "ICoTLlamaForCausalLM",
    "ICoTLlamaModel",
    "ICoTMistralConfig",
    "ICoTMistralForCausalLM",
    "ICoTMistralModel",
    "PCCoTConfigMixin",
    "PCCoTForCausalLMMixin",
    "PCCoTGPT2Config",
    "PCCoTGPT2LMHeadModel",
    "PCCoTGPT2Model",
    "PCCoTLlamaConfig",
    "PCCoTLlamaForCausalLM",
    "PCCoTLlamaModel",
    "PCCoTMistralConfig",
    "PCCoTMistralForCausalLM",
    "PCCoTMistralModel",
    "PCCoTModelMixin",
    "PCCoTOutput",
    "PCCoTQwen3Config",
    "PCCoTQwen3ForCausalLM",
    "PCCoTQwen3Model",
    "PromptConfigMixin",
    "register",
]

"""What the mixins here take for granted: for a type checker the class that they are mixed into, at run time nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

    class ModelBase(PreTrainedModel, GenerationMixin):
        pass

    class ConfigBase(PreTrainedConfig):
        pass

else:
    ModelBase = ConfigBase = object

"""A causal language model around a base model class of ours."""

from torch import nn
from transformers import PreTrainedModel

from .complete_weights import CompleteWeightsMixin


class OwnBaseModelMixin(CompleteWeightsMixin):
    """Builds `base_model_class`, and nothing else, where the backbone's causal language model builds its own.

    A class that mixes this in names its base model in `base_model_class`. Its backbone's head must be a linear layer
    `lm_head` without a bias, as nearly all are (`tests/models/test_models.py` compares every registered type with its backbone).
    """

    base_model_class: type[PreTrainedModel]

    def __init__(self, config):
        # Not the backbone's own `__init__`: that one builds a whole base model first, only to have it replaced.
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.base_model_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, *args, **kwargs):
        """As everywhere; the configuration also tells AutoModel where the base model's code is."""
        base = self.base_model_class
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        self.config.auto_map = auto_map | {"AutoModel": f"{base.__module__.rpartition('.')[2]}.{base.__name__}"}
        return super().save_pretrained(*args, **kwargs)

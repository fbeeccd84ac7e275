"""What GPT-2 needs in both families."""

from transformers.activations import ACT2FN

from .mixin_base import ModelBase


class FusedGeluMixin(ModelBase):
    """A GPT2Model whose activation is one kernel.

    transformers' `gelu_new` writes the formula out: eight elementwise operations over the widest tensor of a block,
    most of which are kept for the backward pass. The kernel computes the same up to rounding.
    """

    def __init__(self, config):
        super().__init__(config)
        if config.activation_function == "gelu_new":
            for block in self.h:
                block.mlp.act = ACT2FN["gelu_pytorch_tanh"]

"""The size of a latent's input: a gain that puts hidden states on the scale of embeddings.

A last hidden state leaves the final norm with a root mean square of about 1 per element, and the embeddings beside it are 10 to
30 times smaller. Fed back as it is, a latent drowns its position, and what a layer adds to it is small.
"""

import torch
from torch import nn


class LatentGain(nn.Module):
    """Multiplies a hidden state by one trained number per element; `(..., hidden)` to `(..., hidden)`."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * self.weight


@torch.no_grad()
def embedding_scale(embeddings: nn.Module, norm: nn.Module) -> float:
    """How large embeddings are beside what the final norm gives out: the quotient of their root mean squares.

    Args:
        embeddings: has a `weight` `(vocabulary, hidden)`.
        norm: a layer norm (`weight` and `bias`) or an RMS norm (`weight`), each `(hidden,)`. Before its weight each element
            has a root mean square of 1.
    """
    states = norm.weight.float().square().mean()
    if (bias := getattr(norm, "bias", None)) is not None:
        states = states + bias.float().square().mean()
    return float((embeddings.weight.float().square().mean() / states).sqrt())

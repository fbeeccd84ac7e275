"""What the passes of a thought give, put together: outputs side by side, and what a training step reads of them."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as ThoughtOutput

from .cache_pccot import PrefixCache, take_columns
from .spans_pccot import ThoughtSpan


@dataclass
class Thought:
    """What `ThinkingModelMixin.think` computed.

    Args:
        pieces: the backbone's outputs, side by side; the last holds every layer's states.
        question_cache: of the columns before the thought span.
        span: where that is.
    """

    pieces: list
    question_cache: PrefixCache
    span: ThoughtSpan

    @property
    def question_state(self) -> torch.Tensor:
        """The last hidden state of the question's last column, `(batch, 1, hidden)`."""
        column = self.span.columns - 1
        return self.pieces[0].last_hidden_state[:, column : column + 1]

    @property
    def latent_states(self) -> torch.Tensor:
        """The states that become the latents' inputs: from `<bot>` to the last latent but one, `(batch, c, hidden)`."""
        states = torch.cat([piece.last_hidden_state for piece in self.pieces], dim=1)
        return states[:, self.span.columns : self.span.columns + self.span.num_latents]

    def answer_states(self, columns: int) -> torch.Tensor:
        """The last hidden states of the last `columns` columns, `(batch, columns, hidden)`."""
        return self.pieces[-1].last_hidden_state[:, -columns:]

    @property
    def answer_layers(self) -> tuple[torch.Tensor, ...]:
        """Every layer's hidden states in the last pass, which ends with the answer."""
        return self.pieces[-1].hidden_states


def output_columns(output, count: int):
    """The first `count` columns of a backbone's output."""
    return ThoughtOutput(
        last_hidden_state=output.last_hidden_state[:, :count],
        hidden_states=output.hidden_states and tuple(layer[:, :count] for layer in output.hidden_states),
        attentions=output.attentions and tuple(layer[:, :, :count] for layer in output.attentions),
    )


def join_columns(pieces: list) -> ThoughtOutput:
    """One output from those of successive columns."""

    def join(name: str, merge):
        if getattr(pieces[0], name) is None:
            return None
        return tuple(merge(layer) for layer in zip(*(getattr(piece, name) for piece in pieces), strict=True))

    def join_attention(layer):
        keys = max(piece.shape[-1] for piece in layer)
        return torch.cat([nn.functional.pad(piece, (0, keys - piece.shape[-1])) for piece in layer], dim=2)

    return ThoughtOutput(
        last_hidden_state=torch.cat([piece.last_hidden_state for piece in pieces], dim=1),
        hidden_states=join("hidden_states", lambda layer: torch.cat(layer, dim=1)),
        attentions=join("attentions", join_attention),
    )


def gather_columns(output, columns: torch.Tensor, past: int) -> ThoughtOutput:
    """Reorder an output row by row: column j comes from `columns[:, j]`, `(batch, length)`."""

    def gather_attention(states):  # (batch, heads, queries, past + keys)
        states = take_columns(states, columns, dim=2)
        return torch.cat([states[..., :past], take_columns(states[..., past:], columns, dim=3)], dim=-1)

    return ThoughtOutput(
        last_hidden_state=take_columns(output.last_hidden_state, columns, dim=1),
        hidden_states=output.hidden_states
        and tuple(take_columns(layer, columns, dim=1) for layer in output.hidden_states),
        attentions=output.attentions and tuple(gather_attention(layer) for layer in output.attentions),
    )

"""Rows of a frozen vocabulary matrix that are trained: PEFT's `trainable_token_indices` without its copy of the matrix."""

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import nn
from torch.nn import functional as F


class TrainedRows(TrainableTokensLayer):
    """PEFT's layer, whose rows are looked up and multiplied by themselves.

    PEFT's own writes them into a copy of the whole matrix in every call (154 MB for GPT-2), forward and backward.
    """

    rows: torch.Tensor | None = None

    def trained_rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The matrix `(vocabulary, hidden)`, which rows `(n,)` are replaced, and by what `(n, hidden)`."""
        (name,) = self.active_adapters
        weight = self.base_layer.weight
        if self.rows is None or self.rows.device != weight.device:
            self.rows = torch.tensor(self.token_indices[name], device=weight.device)
        return weight, self.rows, self.trainable_tokens_delta[name]

    def forward_adapters(self, x: torch.Tensor, active_adapters, *args, **kwargs) -> torch.Tensor:
        plain = type(self.base_layer) in (nn.Embedding, nn.Linear)
        if not plain or self.merged or self.disable_adapters or len(active_adapters) != 1:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        weight, rows, new = self.trained_rows()
        if isinstance(self.base_layer, nn.Linear):
            logits = F.linear(x, weight)
            return logits.index_copy(-1, rows, F.linear(x, new.to(weight.dtype)).to(logits.dtype))
        hit = x[..., None] == rows
        states, replaced = self.base_layer(x), hit.to(new.dtype) @ new
        return torch.where(hit.any(dim=-1, keepdim=True), replaced.to(states.dtype), states)


def use_trained_rows(model: nn.Module) -> None:
    """Replace PEFT's layers in a `PeftModel`; what it saves stays as it is."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRows

"""Positions that skip padding."""

import torch


def positions_from_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids that skip padding; `(batch, length)` -> `(batch, length)`."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)

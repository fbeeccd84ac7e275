"""Cross-entropy from hidden states, without the logits of a whole batch in memory.

With a vocabulary of 50,000 the logits are larger than everything else that a step keeps. Here they exist for a few
tokens at a time: the forward pass computes a chunk's logits, its losses and at once its gradients, then forgets them.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
# Logits in memory at once: enough rows for an efficient matrix product, few enough not to be noticed.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}


def select_labelled(states: torch.Tensor, labels: torch.Tensor, start: int, positions: torch.Tensor | None = None):
    """The states that predict a label, and the labels.

    Args:
        states: `(batch, columns, hidden)`: from column `start - 1` of the sequence on.
        labels: `(batch, length)`, -100 where nothing is to be predicted (everywhere before `start`).
        start: the first column that may be labelled.
        positions: `(n,)`: where the flattened labels are not -100, if known.

    Returns:
        `(n, hidden)` and `(n,)`. On a GPU without `positions` all columns are kept: to look would be to wait.
    """
    length = labels.shape[1]
    columns = length - start
    states, targets = states[:, :columns].flatten(0, 1), labels[:, start:].flatten()
    if positions is not None:
        rows = positions.div(length, rounding_mode="floor")
        positions = rows * columns + positions - rows * length - start
    elif labels.device.type == "cpu":
        positions = (targets != IGNORED).nonzero()[:, 0]
    else:
        return states, targets
    return states.index_select(0, positions), targets.index_select(0, positions)


def mean_cross_entropies(
    head: nn.Module,
    parts: list[tuple[float, torch.Tensor, torch.Tensor]],
    counts: Sequence[torch.Tensor] | None = None,
):
    """Weighted sum of several mean cross-entropies, in one pass over the output head.

    Args:
        head: see `cross_entropy`.
        parts: of each its weight, states `(n, hidden)` and labels `(n,)`.
        counts: of each part, the labelled tokens to divide by, a scalar; those in `labels` if absent.

    Returns:
        The sum, a scalar with its graph, and each part's mean over its labelled tokens, detached.
    """
    if counts is None:
        counts = [(labels != IGNORED).sum() for _, _, labels in parts]
    counts = [count.clamp(min=1) for count in counts]
    weights = torch.cat(
        [(weight / count).float().expand(len(labels)) for (weight, _, labels), count in zip(parts, counts, strict=True)]
    )
    states, labels = torch.cat([states for _, states, _ in parts]), torch.cat([labels for _, _, labels in parts])
    total, losses = cross_entropy(head, states, labels, weights)
    sizes = [len(labels) for _, _, labels in parts]
    return total, [part.sum() / count for part, count in zip(losses.split(sizes), counts, strict=True)]


def cross_entropy(head: nn.Module, states: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor):
    """Weighted sum of the cross-entropies of labelled tokens.

    Args:
        head: the output head, `(n, hidden)` -> `(n, vocabulary)`. One that is linear without bias is computed in chunks;
            so is one whose `trained_rows()` gives `(weight, rows, row_weight)`: a frozen matrix of which a few rows
            are replaced (LoRA). Any other is called, and so is one with hooks, which fetch weights that are kept elsewhere, and
            any in float16.
        states: `(n, hidden)`.
        labels: `(n,)`, -100 where nothing is to be predicted.
        weights: `(n,)`, float32; a gradient reaches `states` and the head, not the weights.

    Returns:
        The sum, a scalar, and each token's own loss `(n,)`, detached, both float32.
    """
    inner = getattr(head, "token_adapter", head)  # PEFT's wrapper
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    # In float16 gradients vanish unless the loss is scaled first, and here they are made before that is known.
    plain = bool(head._forward_pre_hooks) or dtype == torch.float16
    if not plain and hasattr(inner, "trained_rows"):
        matrices = inner.trained_rows()
    elif not plain and type(inner) is nn.Linear and inner.bias is None and inner.weight.numel() > 0:  # 0: ZeRO-3
        matrices = inner.weight, None, None
    else:
        losses = F.cross_entropy(head(states).float(), labels, ignore_index=IGNORED, reduction="none")
        return (losses * weights).sum(), losses.detach()
    return LinearCrossEntropy.apply(states.to(dtype), *matrices, labels, weights)


class LinearCrossEntropy(torch.autograd.Function):
    """See `cross_entropy`. Gradients are computed along with the losses, so backward only scales them."""

    @staticmethod
    def forward(ctx, states, weight, rows, row_weight, labels, weights):
        needed = [ctx.needs_input_grad[index] for index in (0, 1, 3)]
        grad_states = torch.empty_like(states) if needed[0] else None
        grad_weight = torch.zeros_like(weight) if needed[1] else None
        grad_rows = torch.zeros_like(row_weight) if needed[2] else None
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        table = weight.to(states.dtype)
        replaced = None if rows is None else row_weight.to(states.dtype)
        chunk = max(1, CHUNK_ELEMENTS.get(states.device.type, 2**25) // len(weight))
        for start in range(0, len(states), chunk):
            part = slice(start, start + chunk)
            logits = states[part] @ table.T
            if rows is not None:
                logits[:, rows] = states[part] @ replaced.T
            logits, targets = logits.float(), labels[part, None]
            ignored = targets == IGNORED
            targets = targets.masked_fill(ignored, 0)
            norm = logits.logsumexp(dim=1, keepdim=True)
            losses[part] = (norm - logits.gather(1, targets)).masked_fill(ignored, 0)[:, 0]
            if not any(needed):
                continue
            # From here on `logits` holds the gradient of the weighted sum by the logits.
            logits.sub_(norm).exp_()
            logits.scatter_add_(1, targets, torch.full_like(norm, -1.0))
            logits.mul_(weights[part, None].masked_fill(ignored, 0))
            grad = logits.to(states.dtype)
            if rows is not None:
                grad_replaced = grad[:, rows]
                grad[:, rows] = 0
                if needed[2]:
                    grad_rows += grad_replaced.T @ states[part]
            if needed[0]:
                torch.mm(grad, table, out=grad_states[part])
                if rows is not None:
                    grad_states[part] += grad_replaced @ replaced
            if needed[1]:
                product(grad, states[part], grad_weight)
        ctx.gradients = grad_states, grad_weight, grad_rows
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _):
        if ctx.gradients is None:
            raise RuntimeError(
                "this cross-entropy goes backward once (no retain_graph): its gradients are scaled in place"
            )
        (grad_states, grad_weight, grad_rows), ctx.gradients = ctx.gradients, None
        for grad in (grad_states, grad_weight, grad_rows):
            if grad is not None:
                grad.mul_(grad_output)
        return grad_states, grad_weight, None, grad_rows, None, None


def product(grad: torch.Tensor, states: torch.Tensor, total: torch.Tensor) -> None:
    """Add `grad.T @ states`, `(vocabulary, hidden)`, to `total`."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, states)
    else:
        total.add_(grad.T @ states)

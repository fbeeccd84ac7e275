"""One matrix product a weight and step, however many passes used the weight.

Autograd multiplies inputs and output gradients of every pass by itself, and adds the products up: at T = 24 that is 26
times the traffic of all weights and their gradients, for a few tokens each. Here each pass only notes its two factors,
and when the last one has, they are multiplied together.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


class SharedWeight(torch.autograd.Function):
    """A weight for several passes, in the number format they compute in; its gradient comes from their notes."""

    @staticmethod
    def forward(ctx, weight, dtype, notes, transposed):
        ctx.set_materialize_grads(False)
        ctx.notes, ctx.transposed, ctx.dtype = notes, transposed, weight.dtype
        return weight.to(dtype, copy=True) if weight.dtype != dtype else weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        inputs, grads = (torch.cat(factors) for factors in zip(*ctx.notes, strict=True))
        ctx.notes.clear()  # a second backward pass notes anew
        product = inputs.T @ grads if ctx.transposed else grads.T @ inputs
        return product.to(ctx.dtype), None, None, None


class NotedProduct(torch.autograd.Function):
    """`x @ weight.T + bias` (`x @ weight + bias` for a `transposed` one) whose backward pass leaves the weight's
    gradient to `SharedWeight`; x is `(n, inputs)`."""

    @staticmethod
    def forward(ctx, x, weight, bias, notes, transposed):
        ctx.save_for_backward(x, weight)
        ctx.notes, ctx.transposed = notes, transposed
        matrix = weight if transposed else weight.T
        return x @ matrix if bias is None else torch.addmm(bias, x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        note(ctx.notes, x, grad)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_x, None, grad_bias, None, None


class NotingForward:
    """A linear layer's forward pass, for any number of calls in one step."""

    def __init__(self, layer: nn.Module):
        self.layer, self.notes, self.transposed, self.shared = layer, [], isinstance(layer, Conv1D), None

    def weight(self, device: str) -> torch.Tensor:
        """The layer's weight for one more use, of which a gradient's two factors must be noted."""
        if self.shared is None:
            dtype = compute_dtype(device, self.layer.weight.dtype)
            self.shared = SharedWeight.apply(self.layer.weight, dtype, self.notes, self.transposed)
        return self.shared

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight(x.device.type), self.layer.bias
        bias = None if bias is None else bias.to(weight.dtype)
        y = NotedProduct.apply(x.to(weight.dtype).flatten(0, -2), weight, bias, self.notes, self.transposed)
        return y.unflatten(0, x.shape[:-1])


def note(notes: list | None, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a weight `(outputs, inputs)` in `x @ weight.T`, or None where its two factors are noted for later.

    Args:
        notes: from `noted_weight`.
        x: `(n, inputs)`.
        grad: `(n, outputs)`.
    """
    if notes is None:
        return grad.T @ x
    notes.append((x, grad))
    return None


def noted_weight(layer: nn.Linear, device: str) -> tuple[torch.Tensor, list | None]:
    """A layer's weight for a product of one's own, and the notes to keep of its gradient (None: it is not shared)."""
    noting = vars(layer).get("forward")
    if isinstance(noting, NotingForward):
        return noting.weight(device), noting.notes
    return layer.weight.to(compute_dtype(device, layer.weight.dtype)), None


def compute_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The number format of a product with weights of `dtype`: autocast's, where that is on."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


@contextmanager
def shared_weight_gradients(module: nn.Module):
    """While this is open, the linear layers inside `module` (transformers' `Conv1D` too) share weight gradients.

    For the forward pass alone; not together with gradient checkpointing, whose replay comes after it.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if type(layer) in (nn.Linear, Conv1D) and layer.weight.requires_grad and layer.weight.numel() > 0:
                layer.forward = NotingForward(layer)  # `noted_weight` looks for it there, too
                stack.callback(layer.__dict__.pop, "forward")
        yield

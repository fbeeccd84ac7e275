"""One matrix product a weight and step, however many passes used the weight.

Autograd multiplies inputs and output gradients of every pass by itself, and adds the products up: at T = 24 that is 26
times the traffic of all weights and their gradients, for a few tokens each. Here each pass only notes its two factors,
and when the last one has, they are multiplied together.
"""

from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class SharedWeight(torch.autograd.Function):
    """A weight for several passes, in the number format they compute in; its gradient comes from their notes."""

    @staticmethod
    def forward(ctx, weight, dtype, notes, transposed):
        ctx.set_materialize_grads(False)
        ctx.notes, ctx.transposed, ctx.dtype = notes, transposed, weight.dtype
        return weight.to(dtype, copy=True) if weight.dtype != dtype else weight.view_as(weight)

    @staticmethod
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
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        ctx.notes.append((x, grad))
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_x, None, grad_bias, None, None


@contextmanager
def shared_weight_gradients(module: nn.Module):
    """While this is open, the linear layers inside `module` (transformers' `Conv1D` too) share weight gradients.

    For the forward pass alone; not together with gradient checkpointing, whose replay comes after it.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            if type(layer) in (nn.Linear, Conv1D) and layer.weight.requires_grad and layer.weight.numel() > 0:
                layer.forward = noting_forward(layer)
                stack.callback(layer.__dict__.pop, "forward")
        yield


def noting_forward(layer: nn.Module):
    """A layer's forward pass, for any number of calls in one step."""
    notes, transposed, shared = [], isinstance(layer, Conv1D), None

    def forward(x):
        nonlocal shared
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
        if shared is None:
            shared = SharedWeight.apply(layer.weight, dtype, notes, transposed)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        y = NotedProduct.apply(x.to(dtype).flatten(0, -2), shared, bias, notes, transposed)
        return y.unflatten(0, x.shape[:-1])

    return forward

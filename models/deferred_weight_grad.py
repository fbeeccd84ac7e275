"""One weight gradient per weight and training step, however many passes used the weight.

Autograd multiplies inputs by output gradients in every pass and adds up the products: at T = 24 that is 26 times the
traffic of all weights and their gradients, for a few tokens each. Here every use of a weight only keeps its two factors,
and when the last use has both, they are multiplied at once.
"""

from contextlib import contextmanager
from functools import partial
from operator import setitem
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


class DeferredWeight(torch.Tensor):
    """A linear layer's weight for one step: products with it leave its gradient for later.

    Attributes:
        matrix: the weight without a graph, in the number format of the products.
        edge: the layer's bias, or zeros; it ties the uses to the weight. Each use adds it, so autograd asks for its
            gradient after the last use, and that is when the weight's gradient is made.
        uses: per use a list `[input, gradient of the output]`, each `(n, features)`; the gradient is None before
            backward.
    """

    matrix: torch.Tensor
    edge: torch.Tensor
    uses: list[list]

    @classmethod
    def of(cls, layer: nn.Module, dtype: torch.dtype) -> "DeferredWeight":
        """The weight of a `Linear` or `Conv1D` layer, for products in the number format `dtype`."""
        weight = layer.weight
        deferred = weight.detach().as_subclass(cls)
        deferred.uses = []
        deferred.matrix = weight.detach().to(dtype)
        transposed = isinstance(layer, Conv1D)
        bias = layer.bias if layer.bias is not None else weight.new_zeros(weight.shape[1 if transposed else 0])
        deferred.edge = WeightGradient.apply(weight, bias, deferred.uses, transposed, dtype)
        return deferred

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """`F.linear(x, weight, bias)` of `nn.Linear` and `torch.addmm(bias, x, weight)` of `Conv1D`."""
        if func is F.linear:
            x, weight = args[:2]
            matrix = weight.matrix.T
        elif func is torch.addmm:
            _, x, weight = args
            matrix = weight.matrix
        else:
            return super().__torch_function__(func, types, args, kwargs or {})
        inputs = x.to(matrix.dtype).flatten(0, -2)
        y = torch.addmm(weight.edge, inputs, matrix)
        use = [inputs.detach(), None]
        weight.uses.append(use)
        y.register_hook(partial(setitem, use, 1))  # the gradient takes its place without a call in Python
        return y.unflatten(0, x.shape[:-1])


class WeightGradient(torch.autograd.Function):
    """A layer's bias, tied to the weight whose gradient `DeferredWeight.uses` gives."""

    @staticmethod
    def forward(ctx, weight, bias, uses, transposed, dtype):
        ctx.set_materialize_grads(False)
        ctx.uses, ctx.transposed, ctx.dtypes, ctx.spent = uses, transposed, (weight.dtype, bias.dtype), False
        return bias.to(dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_bias):
        if ctx.spent:
            raise RuntimeError(
                "a training step that defers its weights' gradients goes backward once (no retain_graph)"
            )
        factors, ctx.spent = [use for use in ctx.uses if use[1] is not None], True
        grad_weight = None
        if factors:
            inputs, grads = map(torch.cat, zip(*factors, strict=True))
            grad_weight = (inputs.T @ grads if ctx.transposed else grads.T @ inputs).to(ctx.dtypes[0])
        for use in ctx.uses:
            use[0] = use[1] = None  # freed now, not with the graph
        return grad_weight, None if grad_bias is None else grad_bias.to(ctx.dtypes[1]), None, None, None


@contextmanager
def deferred_weight_gradients(module: nn.Module):
    """While this is open, linear layers inside `module` (transformers' `Conv1D` too) defer their weights' gradients.

    For the forward pass alone; not together with gradient checkpointing, whose replay comes after it. Weights that are
    frozen, sharded (DTensors) or kept elsewhere (ZeRO-3 leaves an empty one) stay as they are.
    """
    # `torch.func.functional_call` exchanges the same entries, but for a single call; a step makes many.
    layers: list[Any] = [
        layer
        for layer in module.modules()
        if type(layer) in (nn.Linear, Conv1D)
        and type(layer.weight) is nn.Parameter
        and layer.weight.requires_grad
        and layer.weight.numel() > 0
    ]
    weights = [layer.weight for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            device, dtype = weight.device.type, weight.dtype
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
            layer._parameters["weight"] = DeferredWeight.of(layer, dtype)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = weight

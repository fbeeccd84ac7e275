"""PEFT's layers, faster: the same adapters, the same files, fewer passes over large tensors."""

import copy

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from latent_cot.deferred_weight_grad import DeferredWeight


class FastTrainableTokens(TrainableTokensLayer):
    """Rows of a frozen vocabulary matrix that are trained (`trainable_token_indices`), looked up by themselves.

    PEFT's own layer writes them into a copy of the whole matrix in every call (154 MB for GPT-2), forward and backward.
    """

    rows: torch.Tensor | None = None

    def trained_rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The matrix `(vocabulary, hidden)`, which rows `(n,)` are replaced, and by what `(n, hidden)`."""
        (name,) = self.active_adapters
        weight = self.base_layer.weight
        if self.rows is None or self.rows.device != weight.device:
            with torch.inference_mode(False):  # it is kept, and may be asked for in training next
                self.rows = torch.tensor(self.token_indices[name], device=weight.device)
        return weight, self.rows, self.trainable_tokens_delta[name]

    def get_merged_weights(self, active_adapters) -> torch.Tensor:
        """The matrix with its trained rows in place, `(vocabulary, hidden)`: what the wrapper around this gives as its `weight`.

        It is put together where it is sharded, outside of its own forward pass; all processes take part.
        """
        weight = whole(self.base_layer.weight)
        for name in active_adapters:
            rows = torch.tensor(self.token_indices[name], device=weight.device)
            weight = weight.index_copy(0, rows, whole(self.trainable_tokens_delta[name]).to(weight))
        return weight

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


def whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight, collected from all processes where each holds only a part."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


class FusedLoraLinear(LoraLinear):
    """A linear layer with its adapter as one operation.

    PEFT's own layer scales the adapter's output and adds it to the layer's in operations of their own; autograd adds up
    what comes back through both, and the adapter's gradients pass by pass.
    """

    def __init__(self, base_layer, adapter_name: str, config, **kwargs):
        conv1d = isinstance(base_layer, Conv1D)
        config = copy.copy(config)
        config.fan_in_fan_out = conv1d
        super().__init__(base_layer, adapter_name, config=config, is_target_conv_1d_layer=conv1d, **kwargs)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or not self.is_plain(x):
            return super().forward(x, *args, **kwargs)
        (name,), base, device = self.active_adapters, self.base_layer, x.device.type
        down, up, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        inputs, matrix = x.to(dtype).flatten(0, -2), base.weight if isinstance(base, Conv1D) else base.weight.T
        dropped = None if isinstance(dropout, nn.Identity) or not self.training else dropout(inputs)
        y = LoraProduct.apply(
            inputs,
            dropped,
            matrix.to(dtype),
            None if base.bias is None else base.bias.to(dtype),
            *factor(down.weight, dtype),
            *factor(up.weight, dtype),
            self.scaling[name],
        )
        return y.unflatten(0, x.shape[:-1])

    def is_plain(self, x: torch.Tensor) -> bool:
        """Whether this is a frozen linear layer with one ordinary adapter, which nothing else looks into."""
        if self.merged or self.disable_adapters or self.lora_variant or len(self.active_adapters) != 1:
            return False
        (name,), base = self.active_adapters, self.base_layer
        if name not in self.lora_A or self.lora_B[name].bias is not None or type(base) not in (nn.Linear, Conv1D):
            return False
        formats = {x.dtype}
        for layer in (base, self.lora_A[name], self.lora_B[name]):
            # Hooks fetch weights that are kept elsewhere (offloading, ZeRO-3), and may do anything else.
            if layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook"):
                return False
            weight = layer.weight
            # (To ask a deferred weight itself would be a call of Python.)
            formats.add((weight.matrix if isinstance(weight, DeferredWeight) else weight).dtype)
        trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        if trained or base.weight.numel() == 0:
            return False
        return torch.is_autocast_enabled(x.device.type) or len(formats) == 1


def factor(weight: torch.Tensor, dtype: torch.dtype):
    """A weight as `LoraProduct` takes it: the matrix, what ties it to the graph, and where its uses are kept.

    A deferred weight (see `models/deferred_weight_grad.py`) collects the factors of its gradient; any other gets its
    gradient in every pass.
    """
    if isinstance(weight, DeferredWeight):
        return weight.matrix, weight.edge, weight.uses
    return weight.to(dtype), None, None


class LoraProduct(torch.autograd.Function):
    """`x @ matrix + bias + scale * dropped @ down.T @ up.T` with a frozen matrix and bias.

    x and `dropped` (None: x itself) are `(n, inputs)`, `matrix` `(inputs, outputs)`, `down` `(rank, inputs)` and `up`
    `(outputs, rank)`, the latter two each with edge and uses from `factor`.
    """

    @staticmethod
    def forward(ctx, x, dropped, matrix, bias, down, down_edge, down_uses, up, up_edge, up_uses, scale):
        source = x if dropped is None else dropped
        y = x @ matrix if bias is None else torch.addmm(bias, x, matrix)
        small = (source @ down.T).mul_(scale)
        ctx.save_for_backward(source, small, matrix, down, up)
        ctx.direct, ctx.scale = dropped is None, scale
        ctx.down_use, ctx.up_use = add_use(down_uses, source), add_use(up_uses, small)
        return y.addmm_(small, up.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        source, small, matrix, down, up = ctx.saved_tensors
        grad_small = (grad @ up).mul_(ctx.scale)
        grad_down = weight_gradient(ctx.down_use, source, grad_small)
        grad_up = weight_gradient(ctx.up_use, small, grad)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ matrix.T
            if ctx.direct:
                grad_x.addmm_(grad_small, down)
        if ctx.needs_input_grad[1]:
            grad_dropped = grad_small @ down
        return grad_x, grad_dropped, None, None, grad_down, None, None, grad_up, None, None, None


def add_use(uses: list | None, x: torch.Tensor) -> list | None:
    """Keep the input of one more product, where its weight's gradient is made later."""
    if uses is None:
        return None
    # Detached: with its graph it would hold the weight's own gradient, which holds it, and no step would be freed.
    uses.append([x.detach(), None])
    return uses[-1]


def weight_gradient(use: list | None, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a weight `(outputs, inputs)`; None where `use` keeps its factor for later."""
    if use is None:
        return grad.T @ x
    use[1] = grad
    return None


FASTER_LINEAR = {nn.Linear: FusedLoraLinear, Conv1D: FusedLoraLinear}


def use_fast_trainable_tokens(model: nn.Module) -> None:
    """Replace PEFT's layers of trainable rows in a `PeftModel`; what it saves stays as it is.

    The one place where an object's class is exchanged: PEFT names the class of these layers in its own code, and an adapter
    that is tied to another holds on to that very object.
    """
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = FastTrainableTokens

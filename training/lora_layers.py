"""PEFT's layers, faster: the same adapters, the same files, fewer passes over large tensors."""

from pathlib import Path

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


class TrainedRows(TrainableTokensLayer):
    """Rows of a frozen vocabulary matrix that are trained (`trainable_token_indices`), looked up by themselves.

    PEFT's own layer writes them into a copy of the whole matrix in every call (154 MB for GPT-2), forward and backward.
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


class AddedLora(LoraLinear):
    """A linear layer with its adapter, scaled and added by the matrix product itself.

    PEFT's own layer scales the adapter's output and adds it to the layer's in two operations of their own.
    """

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        plain = not (args or kwargs or self.merged or self.disable_adapters or self.lora_variant)
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if not plain or name not in self.lora_A or self.lora_B[name].bias is not None:
            return super().forward(x, *args, **kwargs)
        result, down, up = self.base_layer(x), self.lora_A[name], self.lora_B[name].weight
        small = down(self.lora_dropout[name](x.to(down.weight.dtype)))
        if not small.dtype == up.dtype == result.dtype and not torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        added = torch.addmm(result.flatten(0, -2), small.flatten(0, -2), up.T, alpha=self.scaling[name])
        return added.unflatten(0, result.shape[:-1])


FASTER = {TrainableTokensLayer: TrainedRows, LoraLinear: AddedLora}


def use_faster_layers(model: nn.Module) -> None:
    """Replace PEFT's layers in a `PeftModel`; what it saves stays as it is."""
    for module in model.modules():
        module.__class__ = FASTER.get(type(module), type(module))


def use_pefts_layers(model: nn.Module) -> None:
    """Undo `use_faster_layers`."""
    pefts = {ours: theirs for theirs, ours in FASTER.items()}
    for module in model.modules():
        module.__class__ = pefts.get(type(module), type(module))


def save_adapters(model: nn.Module, folder: Path, weights: dict | None = None) -> None:
    """Write the adapters of a `PeftModel`, without a copy of the vocabulary.

    Rows that input and output matrix share are named for both: transformers before 5.23 takes the second for missing.

    Args:
        weights: the model's state, where it had to be collected from several processes.
    """
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    path = folder / "adapter_model.safetensors"
    saved = load_file(path)
    for name, layer in model.named_modules():
        if isinstance(layer, TrainableTokensLayer):
            (rows,) = layer.trainable_tokens_delta.values()
            saved.setdefault(f"{name}.trainable_tokens_delta", rows.detach().cpu().clone())
    save_file(saved, path, metadata={"format": "pt"})

"""An estimate of the memory that a training step needs on one device.

Weights, gradients and optimiser are counted. What a step keeps for its backward pass is a sum of products of the model's shape and
the positions that it computes (`terms`), each with a coefficient in bytes from `memory_coefficients.json`, which
`benchmarks/memory.py` measured. That file also names the error on shapes that the fit has not seen.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_cot.chunked_cross_entropy import CHUNK_ELEMENTS

from .step_work import Work

COEFFICIENTS = Path(__file__).with_name("memory_coefficients.json")
GIB = 2**30
LLAMA_LIKE = ("llama", "mistral", "qwen3")
# Measured. Ours, of a chunk: in float32, and once more for the sum of their exponentials (`LinearCrossEntropy`); the
# library's, of all: in float32, their logarithms and the gradient.
BYTES_PER_LOGIT, BYTES_PER_LOGIT_OF_ALL = 8, 12
# Bytes that an optimiser keeps per byte of trained weights; what is not here counts as AdamW, two moments.
OPTIMISER_FACTORS = {"sgd": 0.0, "adafactor": 0.0, "lion_32bit": 1.0, "rmsprop": 1.0, "adagrad": 1.0}


@dataclass(frozen=True)
class Mode:
    """What the coefficients depend on beside shapes.

    Args:
        kind: the step and the blocks, see `kind_of`.
        adapters: LoRA instead of all weights.
        autocast: products in bf16 or fp16 (`--bf16`, `--fp16`).
        half: the weights have two bytes (`--torch_dtype bfloat16`; of LoRA, those that are frozen).
        checkpointed: `--gradient_checkpointing`.
        sharded: the weights are spread over devices, so that weight gradients are not deferred.
    """

    kind: str
    adapters: bool = False
    autocast: bool = False
    half: bool = False
    checkpointed: bool = False
    sharded: bool = False

    @property
    def name(self) -> str:
        """Its key in `memory_coefficients.json`."""
        numbers = "float32" if not self.autocast else "bf16 weights" if self.half else "bf16"
        parts = [self.kind, "LoRA" if self.adapters else "full", numbers]
        if self.checkpointed:  # which does not defer anyway
            parts.append("checkpointed")
        elif self.sharded and self.kind.startswith("thought"):
            parts.append("sharded")
        return ", ".join(parts)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its activations depend on; `heads` and `keys` are the widths of queries and of keys."""

    layers: int
    width: int
    inner: int
    heads: int
    keys: int
    vocabulary: int
    rank: int = 0

    @classmethod
    def of(cls, config, rank: int = 0) -> "Shape":
        width, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
        head = getattr(config, "head_dim", None) or width // heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        return cls(config.num_hidden_layers, width, inner, heads * head, keys * head, config.vocab_size, rank)


@dataclass(frozen=True)
class Sharding:
    """Over how many devices each is spread; all 1 for one device, and for copies on every device (`replicated`)."""

    weights: int = 1
    gradients: int = 1
    optimiser: int = 1
    replicated: bool = False


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device. `copies` are weights collected from other devices, or the buckets in which gradients are averaged;
    `activations`, with logits, converted weights and gradients on their way, is None where nothing was measured."""

    weights: int
    gradients: int
    optimiser: int
    copies: int
    activations: int | None

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimiser + self.copies

    @property
    def total(self) -> int | None:
        return None if self.activations is None else self.fixed + self.activations


def kind_of(model_type: str, thinks: bool) -> str | None:
    """The kind of a training step: what is trained and on which blocks; None if nothing was measured for it.

    Args:
        thinks: PCCoT's step; otherwise one sequence with the library's own loss.
    """
    family, _, backbone = model_type.rpartition("-")
    if backbone in LLAMA_LIKE:
        backbone = "llama"
    elif backbone != "gpt2":
        return None
    if thinks:
        return f"thought {backbone}"
    return f"chain {backbone}" + (" gelu_new" if backbone == "gpt2" and not family else "")


@cache
def measured() -> dict:
    """The contents of `memory_coefficients.json`."""
    return json.loads(COEFFICIENTS.read_text(encoding="utf-8"))


def named_error() -> float:
    """The largest relative error on the shapes that the estimate was checked on, over all modes."""
    return max(abs(error) for errors in measured()["errors"].values() for error in errors)


def terms(shape: Shape, work: Work) -> dict[str, int]:
    """The products that coefficients belong to, for one example."""
    positions, layers = work.positions, shape.layers
    last, largest = sum(new for new, _ in work.passes[-2:]), max(new for new, _ in work.passes)
    return {
        "layers x positions x width": layers * positions * shape.width,
        "layers x positions x inner": layers * positions * shape.inner,
        "layers x keys x key width": layers * work.keys * shape.keys,
        "layers x keys x head width": layers * work.keys * shape.heads,
        "layers x positions x rank": layers * positions * shape.rank,
        "last passes x width": last * shape.width,
        "last passes x inner": last * shape.inner,
        "largest pass x width": largest * shape.width,
        "largest pass x inner": largest * shape.inner,
    }


def activation_bytes(mode: Mode, shape: Shape, work: Work, batch: int) -> tuple[int, int] | None:
    """What every layer keeps for the backward pass, and what one layer needs while it is computed backwards, in bytes; None where
    nothing was measured."""
    coefficients = measured()["coefficients"].get(mode.name)
    if coefficients is None:
        return None
    products, scale = terms(shape, work), float(batch)
    if mode.half and not mode.autocast:  # everything is half as large as in float32
        scale /= 2
    parts = {name: scale * value * products[name] for name, value in coefficients.items()}
    kept = sum(part for name, part in parts.items() if name.startswith("layers"))
    return round(kept), round(sum(parts.values()) - kept)


def logit_bytes(mode: Mode, shape: Shape, work: Work, batch: int, device: str) -> int:
    """The logits of one chunk (`models/chunked_cross_entropy.py`), or all of them for the library's loss."""
    logits = batch * work.logits * shape.vocabulary
    if not mode.kind.startswith("thought"):
        return BYTES_PER_LOGIT_OF_ALL * logits
    return BYTES_PER_LOGIT * min(CHUNK_ELEMENTS.get(device, 2**25), logits)


def weight_copies(model: nn.Module, mode: Mode, work: Work) -> int:
    """Bytes of float32 weights in the number format of the products (autocast)."""
    held = 0
    for module in model.modules():
        if mode.autocast and isinstance(module, (nn.Linear, Conv1D)) and module.weight.dtype == torch.float32:
            # A trained weight is converted once per step, a frozen one in every pass, which keeps its own copy.
            times = 1 if module.weight.requires_grad else 0 if mode.checkpointed else len(work.passes)
            held += 2 * times * module.weight.numel()
    return held


def head_gradient(model: PreTrainedModel, mode: Mode) -> int:
    """Bytes of the output head's gradient, which is made before the backward pass, and of the product that it is the sum of."""
    weight = model.get_output_embeddings().weight
    if not weight.requires_grad:
        return 0
    product = 2 if mode.autocast and weight.element_size() == 4 else 0
    return weight.numel() * (weight.element_size() + product)


def waiting_gradients(model: PreTrainedModel, mode: Mode) -> int:
    """Bytes of the blocks' gradients that wait for the first pass: autograd hands on the sum over all passes, and
    only a step that defers its weights' gradients makes them at the end instead."""
    if not mode.kind.startswith("thought") or not (mode.checkpointed or mode.sharded):
        return 0
    weights = [weight for weight in model.base_model.parameters() if weight.requires_grad]
    outside = {id(model.get_input_embeddings().weight)}
    itemsize = 2 if mode.sharded and mode.autocast else None  # a sharded weight is used in the products' number format
    return sum(w.numel() * (itemsize or w.element_size()) for w in weights if id(w) not in outside)


def step_bytes(model: PreTrainedModel, mode: Mode, shape: Shape, work: Work, batch: int, device: str) -> int | None:
    """What a step needs beside weights, gradients and optimiser: the larger of its two high points, where the backward pass begins
    and where it reaches the first pass; None where nothing was measured."""
    activations = activation_bytes(mode, shape, work, batch)
    if activations is None:
        return None
    kept, passing = activations
    logits, head = logit_bytes(mode, shape, work, batch, device), head_gradient(model, mode)
    copies = 0 if mode.sharded else weight_copies(model, mode, work)
    # Layers are recomputed when the logits are gone.
    begins = max(kept + logits, kept + passing) if mode.checkpointed else kept + passing + logits
    if not mode.kind.startswith("thought"):
        # The head's gradient comes when two thirds of what the logits took are free; copies go before layers are recomputed.
        return max(begins, begins - 2 * logits // 3 + head) + (0 if mode.checkpointed else copies)
    ends = (kept + passing) * work.passes[0][0] // work.positions + waiting_gradients(model, mode)
    return max(begins + copies, ends) + head


def gathered_bytes(model: PreTrainedModel, itemsize: int) -> int:
    """Weights that a device holds whole at a time where they are sharded: everything outside the blocks, and two blocks,
    the present one and the one that is fetched.

    Args:
        itemsize: bytes of a number while it is used.
    """
    names = set(getattr(model, "_no_split_modules", None) or [])
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    within = sum(weights.numel() for block in blocks for weights in block.parameters())
    outside = sum(weights.numel() for weights in model.parameters()) - within
    return itemsize * (outside + 2 * within // max(1, len(blocks)))


def device_memory(
    model: PreTrainedModel,
    mode: Mode | None,
    work: Work,
    batch: int,
    *,
    rank: int = 0,
    device: str = "cuda",
    optimiser: str = "adamw_torch",
    sharding: Sharding | None = None,
) -> DeviceMemory:
    """The estimate for one device.

    Args:
        model: with its adapters, if it has any; on the device "meta" it costs nothing.
        mode: None where `kind_of` knows nothing: activations are None then.
        work: of the longest example of a batch.
        batch: examples that one device takes at once.
        rank: of the adapters.
        device: type of the device.
        optimiser: as `--optim` names it.
        sharding: by default one device that holds everything.
    """
    sharding = sharding or Sharding()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = sum(weights.numel() * weights.element_size() for weights in model.parameters())
    trained = sum(weights.numel() * weights.element_size() for weights in model.parameters() if weights.requires_grad)
    copies = trained if sharding.replicated else 0  # the buckets that gradients are averaged in
    activations = None
    if mode is not None:
        activations = step_bytes(inner, mode, Shape.of(inner.config, rank), work, batch, device)
        if sharding.weights > 1:
            copies += gathered_bytes(inner, 2 if mode.autocast or mode.half else 4)
    return DeviceMemory(
        weights // sharding.weights,
        trained // sharding.gradients,
        round(trained * optimiser_factor(optimiser)) // sharding.optimiser,
        copies,
        activations,
    )


def optimiser_factor(name: str) -> float:
    """Bytes of the optimiser per byte of trained weights."""
    if "8bit" in name:
        return 0.5
    return OPTIMISER_FACTORS.get(name, 2.0)


def size_text(size: int) -> str:
    """Bytes as a reader takes them in: `512 MiB`, `3.2 GiB`."""
    return (
        f"{size / GIB:.1f} GiB"
        if size >= GIB
        else f"{size / 2**20:,.0f} MiB"
        if size >= 2**20
        else f"{size / 2**10:,.0f} KiB"
    )

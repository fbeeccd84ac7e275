"""Thoughts of several sets of weights: each row thinks with value matrices whose singular values are scaled at random.

After Singular-Value-Perturbation: V = U diag(s) W^T becomes U diag(s (1 + strength g)) W^T with normal g. That is
(1 + U diag(strength g) U^T) V: what a row adds to its values is made of them and of V's left basis U. So one batch thinks with
as many sets of weights as it has rows, and no weight is written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

KEPT: WeakKeyDictionary[nn.Module, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()  # a value matrix, its basis


class ValueNoise:
    """One draw of g per row and layer, held over the question and all passes of the thought; the answer has clean weights.

    Gradients reach V and what V reads through the scaled values too; the basis U counts as a constant.

    Args:
        backbone: a base model.
        strength: standard deviation of the factors of the singular values around 1.
        seeds: one per row. A row's draws come from its own seed alone, so they are the same in every batch.

    Raises:
        ValueError: if the backbone has no value matrices that are known here.
    """

    def __init__(self, backbone: Any, strength: float, seeds: list[int]):
        self.projections = value_projections(backbone)
        self.bases = [basis_of(module) for module in self.projections]
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.factors = [  # `(rows, 1, rank)` for each layer
            strength * torch.stack([torch.randn(1, basis.shape[1], generator=source) for source in sources]).to(basis)
            for basis in self.bases
        ]

    def before(self, column: int, run: Callable) -> Callable:
        """`run` with this noise in the columns before `column`: a `run` for `jacobi_pccot.py`."""

        def noisy(inputs: torch.Tensor, start: int) -> torch.Tensor:
            with self.in_first_columns(column - start):
                return run(inputs, start)

        return noisy

    @contextmanager
    def in_first_columns(self, count: int) -> Iterator[None]:
        """Passes of this thread have the noise in so many of their columns; the hooks that add it go, whatever happens."""
        hooks: list = []
        try:
            if count > 0:
                for module, basis, factors in zip(self.projections, self.bases, self.factors, strict=True):
                    hooks.append(module.register_forward_hook(self.hook(basis, factors, count, get_ident())))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def hook(self, basis: torch.Tensor, factors: torch.Tensor, count: int, thread: int) -> Callable:
        """What adds the noise to the output `(rows, columns, width)` of a projection, whose last elements are the values."""

        def add(module, args, output):
            if get_ident() != thread:
                return output
            values = output[:, :count, -basis.shape[0] :]
            if module.bias is not None:
                values = values - module.bias[-basis.shape[0] :]
            noise = ((values.to(basis) @ basis) * factors) @ basis.T
            return output + nn.functional.pad(
                noise.to(output), (output.shape[2] - noise.shape[2], 0, 0, output.shape[1] - noise.shape[1])
            )

        return add


def value_projections(backbone: Any) -> list[nn.Module]:
    """What makes the values of each layer: `v_proj`, or GPT-2's `c_attn`, which makes queries and keys before them.

    Raises:
        ValueError: if there is none.
    """
    found = [module for name, module in backbone.named_modules() if name.endswith(("attn.c_attn", "attn.v_proj"))]
    if not found:
        raise ValueError(f"value_noise: a {backbone.config.model_type} has no value matrices that are known here")
    return found


def value_matrix(projection: Any, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The value matrix `(in, out)` among the weights of a projection (or in a tensor of their shape), as a view of them.

    Raises:
        ValueError: for quantised weights, and for ones with adapters beside them.
    """
    if hasattr(projection, "base_layer"):
        raise ValueError("value_noise needs value matrices without adapters, whose basis is another: merge them first")
    weight = projection.weight if weight is None else weight
    if not weight.is_floating_point():
        raise ValueError(f"value_noise needs value matrices that are not quantised, got {weight.dtype}")
    return (
        weight[:, -(weight.shape[1] // 3) :] if hasattr(projection, "nf") else weight.T
    )  # GPT-2's Conv1D: (in, 3 x out)


@torch.inference_mode(False)  # it is kept, and may be asked for in training next
@torch.no_grad()
def basis_of(projection: nn.Module) -> torch.Tensor:
    """The singular vectors `(out, rank)` on the side of the values, in float32 at least; kept for as long as the weights stay."""
    matrix = value_matrix(projection)
    made_of, basis = KEPT.get(projection, (matrix.new_empty(0), matrix))
    where = made_of.device, made_of.dtype
    if where != (matrix.device, matrix.dtype) or not torch.equal(made_of, matrix):  # whoever wrote weights, and however
        basis = singular_vectors(matrix)
        KEPT[projection] = matrix.clone(), basis
    return basis


def singular_vectors(matrix: torch.Tensor) -> torch.Tensor:
    """`(out, rank)` of a matrix `(in, out)`."""
    return torch.linalg.svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), full_matrices=False).Vh.T

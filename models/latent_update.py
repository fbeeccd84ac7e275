"""How a pass makes the inputs of the latents from the states of the pass before: each rule described once.

The passes, a trace of them, engines and configurations go by these; another rule is another entry of `UPDATES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .jacobi_pccot import jacobi, jacobi_in_full, jacobi_window


@dataclass(frozen=True)
class LatentUpdate:
    """One rule.

    Args:
        name: `latent_update` of the configuration.
        combine: makes the inputs of latents, `(batch, latents, hidden)`, of three such: what they read of the last pass (through
            the base model's `project`), their embeddings, and their inputs in that pass.
        weights: of a rule that has some: makes of the configuration the module that stands for `combine`.
        reads_before: a latent reads the state of the position before it; otherwise that of its own.
        settles: an input is what was read and nothing else, so latent i is final after i passes: the window is exact, and more
            than c passes change nothing.

    Raises:
        ValueError: for a rule that settles, and reads or combines anything else.
    """

    name: str
    combine: Callable | None = None
    weights: Callable[..., nn.Module] | None = None
    reads_before: bool = True
    settles: bool = False

    def __post_init__(self):
        combines = self.combine is not None or self.weights is not None
        if self.settles is combines or (self.settles and not self.reads_before):
            raise ValueError(
                f"the rule {self.name!r}: one that settles reads the state before a latent and combines nothing, any other "
                "needs combine or weights"
            )

    def think(self, run, embeds, bot, latents, iterations, project) -> torch.Tensor:
        """The passes, with nothing computed that no later pass reads; see `jacobi_pccot.py`."""
        if self.settles:
            return jacobi_window(run, embeds, bot, latents, iterations, project)
        return jacobi_in_full(run, embeds, bot, latents, iterations, project, self.reads_before, self.combine)

    @property
    def plain(self) -> Callable:
        """`think` with nothing pruned: its twin."""
        return jacobi if self.settles else self.think

    def passes(self, iterations: int, latents: int) -> int:
        """How many passes of `iterations` change anything for `latents` latents."""
        return min(iterations, latents) if self.settles else iterations

    def inputs(self, projected: torch.Tensor, embeds: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """`combine`, where there is anything to combine."""
        return projected if self.combine is None else self.combine(projected, embeds, last)

    def inputs_in_rows(self, states, embeds, last, project) -> torch.Tensor:
        """The inputs of latents wherever they stand in a row, for engines that run whole rows again.

        Args:
            states, last: of the last pass, its last hidden states and its inputs, `(batch, length, hidden)`.
            embeds: of the tokens, as long.
            project: a base model's.

        Returns:
            `(batch, length, hidden)`, right where there is a latent; the caller leaves the other columns as they were.
        """
        return self.inputs(project(states.roll(1, dims=1) if self.reads_before else states), embeds, last)


def add(projected: torch.Tensor, embeds: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """A latent keeps its own embedding, and its own state is added to it (after LOTUS, arXiv 2606.31779)."""
    return embeds + projected


SHIFT = LatentUpdate("shift", settles=True)
ADD = LatentUpdate("add", add, reads_before=False)
UPDATES = {update.name: update for update in (SHIFT, ADD)}

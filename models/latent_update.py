"""How a pass makes the inputs of the latents from the states of the pass before: each rule described once.

The passes, a trace of them, engines and configurations go by these; another rule is another entry of `UPDATES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .jacobi_pccot import jacobi, jacobi_add, jacobi_window


@dataclass(frozen=True)
class LatentUpdate:
    """One rule.

    Args:
        name: `latent_update` of the configuration.
        think: the passes, with nothing computed that no later pass reads; see `jacobi_pccot.py`.
        plain: the same with nothing pruned: its twin.
        reads_before: a latent reads the state of the position before it; otherwise that of its own.
        keeps_embedding: what it reads is added to its embedding; otherwise it replaces it.
        settles: latent i is final after i passes, so that more than c of them change nothing.
    """

    name: str
    think: Callable
    plain: Callable
    reads_before: bool
    keeps_embedding: bool
    settles: bool

    def passes(self, iterations: int, latents: int) -> int:
        """How many passes of `iterations` change anything for `latents` latents."""
        return min(iterations, latents) if self.settles else iterations

    def inputs(self, states: torch.Tensor, embeds: torch.Tensor, project: Callable) -> torch.Tensor:
        """The inputs of latents wherever they stand in a row, for engines that run whole rows again.

        Args:
            states: of the last pass, `(batch, length, hidden)`.
            embeds: of the tokens, as long.
            project: a base model's.

        Returns:
            `(batch, length, hidden)`, right where there is a latent; the caller leaves the other columns as they were.
        """
        inputs = project(states.roll(1, dims=1) if self.reads_before else states)
        return embeds + inputs if self.keeps_embedding else inputs


SHIFT = LatentUpdate("shift", jacobi_window, jacobi, reads_before=True, keeps_embedding=False, settles=True)
ADD = LatentUpdate("add", jacobi_add, jacobi_add, reads_before=False, keeps_embedding=True, settles=False)
UPDATES = {update.name: update for update in (SHIFT, ADD)}

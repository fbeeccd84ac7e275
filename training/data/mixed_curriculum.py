"""PCCoT's mixed curriculum: some batches keep their last steps explicit after `<eot>` (after Coconut, arXiv 2412.06769)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MixedCurriculum:
    """How many leading steps of a batch are latents; the others stay explicit between `<eot>` and the answer prompt.

    Args:
        probability: share of the batches that it changes; 0 turns it off.
        num_latent_tokens: c.
        latents_per_step: how many latents stand for one step.
    """

    probability: float
    num_latent_tokens: int
    latents_per_step: int

    def draw(self, steps: list[list[list[int]]], source: torch.Generator) -> int | None:
        """A number of latent steps for a batch, by random; None for all of them (the usual case).

        Args:
            steps: of each row, its steps as token ids.
            source: of the random numbers.
        """
        most = min(max(map(len, steps)), self.num_latent_tokens // self.latents_per_step)
        if most < 2 or torch.rand((), generator=source) >= self.probability:
            return None
        return int(torch.randint(1, most, (), generator=source))

    def longest(self, steps: list[list[int]]) -> int:
        """The most tokens, latents and explicit steps together, that a row's thought can take."""
        lengths = [self.num_latent_tokens]
        if self.probability:
            mixed = range(1, min(len(steps), self.num_latent_tokens // self.latents_per_step))
            lengths += [count * self.latents_per_step + sum(map(len, steps[count:])) for count in mixed]
        return max(lengths)

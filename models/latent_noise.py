"""Thoughts that can be sampled: noise on the inputs of the latents, for several different thoughts about one question."""

from collections import Counter
from collections.abc import Callable
from zlib import crc32

import torch


class LatentNoise:
    """Gaussian noise and dropout on what each latent is fed.

    Each latent of each row has one draw, which all passes share: so latent i is final after i passes, as without noise,
    and T >= c is the sequential thought under the same noise.

    Args:
        scale: standard deviation of the noise, relative to the root mean square of a latent's input.
        dropout: probability with which an element of it becomes 0; the others are scaled up.
        seeds: one per row. A row's draws come from its own seed alone, so they are the same in every batch.
    """

    def __init__(self, scale: float, dropout: float, seeds: list[int]):
        self.scale, self.dropout, self.seeds = scale, dropout, seeds

    def draw(self, latents: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Gaussian noise and factors of dropout, both `(rows, latents, width)`, in float32 on the CPU."""
        noise, keep = [], []
        for seed in self.seeds:
            source = torch.Generator().manual_seed(seed)
            noise.append(torch.randn(latents, width, generator=source))
            keep.append(torch.rand(latents, width, generator=source) >= self.dropout)
        return torch.stack(noise) * self.scale, torch.stack(keep) / (1 - self.dropout)

    def after(self, project: Callable, latents: int, embeds: torch.Tensor) -> Callable:
        """`project` with this noise on what it gives: a `project` for `jacobi_pccot.py`.

        Args:
            latents: c.
            embeds: `(batch, length, width)`, for device and number format.
        """
        noise, keep = (draw.to(embeds.device, embeds.dtype) for draw in self.draw(latents, embeds.shape[-1]))

        def noisy(states: torch.Tensor, first: int) -> torch.Tensor:
            inputs = project(states, first)
            here = slice(first, first + inputs.shape[1])
            size = inputs.float().square().mean(dim=-1, keepdim=True).sqrt().to(inputs.dtype)
            return inputs * keep[:, here] + size * noise[:, here]

        return noisy


def sources_of_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, seed: int) -> torch.Tensor:
    """What the random numbers of each row come from: its tokens and the seed, and its number in the batch; `(batch, 2)`.

    Tokens and not places, so that a question has the same samples alone and in a batch.
    """
    keys = [
        crc32(repr((seed, [token for token, real in zip(row, mask, strict=True) if real])).encode())
        for row, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
    ]
    return torch.tensor(list(enumerate(keys)), device=input_ids.device).flip(1)


def seeds_of_samples(sources: torch.Tensor | None, rows: int) -> list[int]:
    """A seed for each row: the n-th sample of a question (rows that share their source) has the n-th.

    Args:
        sources: of `sources_of_rows`, repeated for each sample; None makes the rows different by their places.
    """
    if sources is None:
        return list(range(rows))
    seen: Counter[int] = Counter()
    seeds = []
    for key, row in sources.tolist():
        seeds.append(crc32(f"{key} {seen[row]}".encode()))
        seen[row] += 1
    return seeds

"""What makes the rollouts of a question differ beside the temperature of their answers: noise in their thoughts (`--rollout_noise`).

Each rollout's thought has noise of its own, n, drawn once from seed, step, question and sample number. Its answer is sampled
from p(answer | question, n) and scored by the same p: the noise is part of what a rollout is asked, as the question is. So
GRPO's gradient estimates that of the expected reward, averaged over n. Left out is how n itself depends on the weights:
`value_noise` is relative to singular vectors, which count as constants.
"""

from collections import Counter
from zlib import crc32

import torch
from transformers import PreTrainedModel

from latent_cot.value_noise import value_matrix, value_projections


def sources_of(questions: list[str], now: tuple[int, ...]) -> torch.Tensor:
    """What the noise of each rollout comes from, `(rollouts, 2)`: its question, its number among those of it, and `now`."""
    seen: Counter[str] = Counter()
    keys = []
    for question in questions:
        keys.append(crc32(repr((*now, question, seen[question])).encode()))
        seen[question] += 1
    return torch.tensor(list(enumerate(keys))).flip(1)


class WithNoise:
    """A model as TRL calls it to score rollouts in order, some rows at a time: with the noise of those rows."""

    def __init__(self, model, sources: torch.Tensor, noise: dict[str, float]):
        self.model, self.sources, self.noise = model, sources, noise

    def __call__(self, input_ids: torch.Tensor, **inputs):
        here, self.sources = self.sources.split([len(input_ids), len(self.sources) - len(input_ids)])
        return self.model(input_ids=input_ids, latent_sources=here, **self.noise, **inputs)


def freeze_all_but_values(model: PreTrainedModel) -> None:
    """Leave gradients to the value matrices alone; of GPT-2's `c_attn` those are some columns, and the others' are 0."""
    model.requires_grad_(False)
    for projection in value_projections(model.base_model):
        weight = projection.weight.requires_grad_(True)
        mine = torch.zeros_like(weight)
        value_matrix(projection, mine).fill_(1)
        weight.register_hook(lambda gradient, mine=mine: gradient * mine.to(gradient.device))

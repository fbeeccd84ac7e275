"""Thoughts, changed on purpose: what an answer does after that shows whether it is read from them.

All functions take thoughts `(questions, c, hidden)`, and a question's change is the same however questions are batched.
"""

import random
from collections import Counter
from zlib import crc32

import torch

from latent_cot.training.errors import InputError

AS_THEY_ARE = "as_they_are"
LABELS = {
    AS_THEY_ARE: "thoughts as they are",
    "zeroed": "thoughts zeroed",
    "swapped": "thoughts of another question",
    "shuffled": "latents in another order",
    "noise": "noise of the same norm",
    "removed": "one latent removed",
}


def change_thoughts(
    thoughts: torch.Tensor,
    questions: list[str],
    intervention: str,
    *,
    golds: list[str] | None = None,
    latent: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Thoughts after an intervention, `(questions, c, hidden)`. Raises InputError for an unknown intervention, one
    latent in another order, no other question to swap with, and a `latent` that is missing or that there is not.

    Args:
        thoughts: `(questions, c, hidden)`, left as they are.
        questions: what they are about; random numbers go by a question's text, not by its place.
        intervention: one of `LABELS`. `zeroed`: all latents are 0. `swapped`: each question has another's thought
            (`partners`). `shuffled`: its own latents in another order. `noise`: Gaussian noise, each latent as long as it
            was. `removed`: one latent is the mean of that latent over all questions, which tells nothing about any of
            them and is still a latent as the model knows them, which zeros are not.
        golds: right answers, for partners whose answer is another one.
        latent: which latent is removed, from 1.
    """
    if intervention not in LABELS:
        raise InputError(f"no intervention {intervention!r}; there are: {', '.join(LABELS)}")
    if (intervention == "removed") != (latent is not None):
        raise InputError("latent= says which latent is removed: it belongs to intervention='removed', which needs it")
    count = thoughts.shape[1]
    if intervention == AS_THEY_ARE:
        return thoughts
    if intervention == "zeroed":
        return torch.zeros_like(thoughts)
    if intervention == "swapped":
        return thoughts[partners(questions, golds, seed)]
    if intervention == "shuffled":
        if count == 1:
            raise InputError("one latent has no other order: 'shuffled' needs c of at least 2")
        orders = torch.tensor([other_order(count, seed, question) for question in questions], device=thoughts.device)
        return thoughts.take_along_dim(orders[:, :, None], dim=1)
    if intervention == "noise":
        noise = torch.stack([noise_for(question, seed, thoughts.shape[1:]) for question in questions]).to(thoughts)
        return noise * (thoughts.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
    if latent not in range(1, count + 1):
        raise InputError(f"latent must be from 1 to {count}, got {latent!r}")
    removed = thoughts.clone()
    removed[:, latent - 1] = thoughts[:, latent - 1].float().mean(dim=0)
    return removed


def partners(questions: list[str], golds: list[str] | None = None, seed: int = 0) -> list[int]:
    """For each question the place of another one, of another text: each is a partner once, unless one text is that of more
    than half of the rows.

    With `golds`, partners have another right answer wherever no answer is that of more than half of the questions: rows
    are sorted by answer and moved on by the size of the largest group, which leads out of every group.

    Raises InputError for fewer than two different questions.
    """
    total = len(questions)
    if len(set(questions)) < 2:
        raise InputError("a thought is swapped with that of another question: there must be at least two questions")
    order = list(range(total))
    random.Random(seed).shuffle(order)
    step = 1
    if golds is not None:
        order.sort(key=lambda row: golds[row])
        largest = max(Counter(golds).values())
        step = largest if largest < total else 1
    found = [0] * total
    for place, row in enumerate(order):
        found[row] = order[(place + step) % total]

    def differ(row: int, partner: int) -> bool:
        return questions[row] != questions[partner]

    # The same question asked twice has the same thought, which changes nothing: such a row exchanges partners.
    for row in order:
        if not differ(row, found[row]):
            other = next((one for one in order if differ(row, found[one]) and differ(one, found[row])), None)
            if other is None:
                found[row] = next(one for one in order if differ(row, one))
            else:
                found[row], found[other] = found[other], found[row]
    return found


def other_order(count: int, seed: int, question: str) -> list[int]:
    """Any order of `count` latents but the one they have."""
    source, order = random.Random(f"{seed} {question}"), list(range(count))
    while order == sorted(order):
        source.shuffle(order)
    return order


def noise_for(question: str, seed: int, shape: torch.Size) -> torch.Tensor:
    """Gaussian noise of a question's own."""
    source = torch.Generator().manual_seed(crc32(f"{seed} {question}".encode()))
    return torch.randn(shape, generator=source)

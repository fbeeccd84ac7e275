"""Several sampled thoughts per question (`--num_samples`): pass@k, majority vote, and how different the answers are."""

import math
from collections import Counter

from .comparison import Comparison, as_number, same_answer
from .evaluation import wilson_interval


def sample_metrics(
    name: str, samples: list[list[str | None]], golds: list[str], same: Comparison = same_answer
) -> dict[str, float]:
    """Metrics of n answers per question, with 95 % intervals (`_low`, `_high`).

    Args:
        samples: for each question its n answers; None where there is none.
        same: compares an answer with the right one; which answers of a question are one goes by `same_answer`.

    Returns:
        `{name}_pass_at_{k}` for k = 1, 2, 4, ... and n: the probability that one of k answers is right, estimated without
        bias from all n (Chen et al., arXiv 2107.03374, section 2.1); `{name}_majority_vote`, the share of questions whose
        most frequent answer is right; `{name}_distinct_answers`, how many different answers a question has on average.
    """
    count, total = len(samples[0]), len(golds)
    right = [sum(same(answer, gold) for answer in row) for row, gold in zip(samples, golds, strict=True)]
    metrics: dict[str, float] = {}
    for k in sorted({2**power for power in range(count.bit_length()) if 2**power <= count} | {count}):
        metrics |= with_interval(f"{name}_pass_at_{k}", [pass_at(k, count, number) for number in right])
    votes = [same(vote(row), gold) for row, gold in zip(samples, golds, strict=True)]
    metrics |= with_interval(f"{name}_majority_vote", votes)
    return metrics | {f"{name}_distinct_answers": sum(len(set(map(key_of, row))) for row in samples) / total}


def pass_at(k: int, count: int, right: int) -> float:
    """The probability that k of `count` answers, `right` of which are right, hold a right one."""
    return 1 - math.comb(count - right, k) / math.comb(count, k)


def with_interval(name: str, values: list[float]) -> dict[str, float]:
    """A mean over questions and its 95 % interval: Wilson's, as if each were right or wrong, which varies most of all numbers
    between 0 and 1."""
    low, high = wilson_interval(sum(values), len(values))
    return {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}


def vote(answers: list[str | None]) -> str | None:
    """The most frequent answer, of equally frequent ones the first; no answer has no vote."""
    counted = Counter(key_of(answer) for answer in answers if answer is not None)
    if not counted:
        return None
    most, _ = counted.most_common(1)[0]
    return next(answer for answer in answers if answer is not None and key_of(answer) == most)


def key_of(answer: str | None) -> object:
    """What is the same for answers that `same_answer` counts as one."""
    if answer is None:
        return None
    text = " ".join(answer.split())
    number = as_number(text)
    return text if number is None else number

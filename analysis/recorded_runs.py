"""Runs that are recorded, one JSON file each, and what is said of several: intervals over seeds, a paired test, Markdown tables."""

import json
import math
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from .evaluation import wilson_interval

# Student's t at 97.5 % for 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def measured_values(metrics: dict[str, float], mode: str) -> dict:
    """What a record holds of a run's metrics, of its answers to the test split in a mode (`models/answer_modes.py`).

    `train_seconds` is None where a finished training was only measured.
    """
    test = f"test_{mode}_"
    return {
        "exact_match": metrics[f"{test}exact_match"],
        "low": metrics[f"{test}exact_match_low"],
        "high": metrics[f"{test}exact_match_high"],
        "train_seconds": metrics.get("train_runtime"),
        "ms_per_answer_in_batches": metrics[f"{test}ms_per_answer"],
        "new_tokens": metrics[f"{test}new_tokens"],
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }


def write_record(path: Path, row: dict) -> None:
    """Whole or not at all, since a run whose record is there is not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def records(folder: Path, methods: Iterable[str]) -> dict[str, list[dict]]:
    """What `folder/METHOD/seed-N.json` hold, by method, in the order of the methods."""
    return {
        method: [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{method}/seed-*.json"))]
        for method in methods
    }


def markdown_table(names: list[str], rows: list[list[str]]) -> list[str]:
    """Its lines."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def interval(rates: list[float], questions: int) -> tuple[float, float]:
    """95 % interval of a mean over seeds: the wider, at each end, of Student's t over the seeds and Wilson's over the questions.

    Either alone would be too narrow: seeds that agree have no spread, and questions say nothing of another training.
    """
    mean, count = statistics.mean(rates), len(rates)
    low, high = wilson_interval(mean * questions, questions)
    if count > 1:
        t = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96 + 2.6 / (count - 1)
        half = t * statistics.stdev(rates) / math.sqrt(count)
        low, high = min(low, max(0.0, mean - half)), max(high, min(1.0, mean + half))
    return low, high


def paired_test(first: dict[int, str], other: dict[int, str]) -> tuple[int, int, float] | None:
    """Exact sign test over the questions, which with one seed is McNemar's; None without a common seed.

    A question counts for the method that answers it rightly with more of the seeds that both have: questions are independent of each
    other, answers of several seeds to one question are not.

    Args:
        first, other: by seed, "1" for each question that is answered rightly and "0" for each that is not.

    Returns:
        How many questions count for the first and for the other, and the two-sided p.
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        return None
    totals = [
        [sum(map(int, answers)) for answers in zip(*(right[seed] for seed in seeds), strict=True)]
        for right in (first, other)
    ]
    ahead = sum(a > b for a, b in zip(*totals, strict=True))
    behind = sum(a < b for a, b in zip(*totals, strict=True))
    count = ahead + behind
    tail = sum(math.comb(count, k) for k in range(min(ahead, behind) + 1))
    return ahead, behind, min(1.0, 2 * tail / 2**count)  # whole numbers: a ratio of huge ones is exact

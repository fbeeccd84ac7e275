"""Different questions, drawn one after the other and divided into splits."""

import random
from collections.abc import Callable, Hashable

PATIENCE = 1_000  # draws in a row that give no new question


def draw_splits(
    task: str,
    draw: Callable[[random.Random], dict],
    train: int,
    validation: int,
    test: int,
    seed: int,
    key: Callable[[dict], Hashable] = lambda example: example["question"],
) -> dict[str, list[dict]]:
    """Train, validation and test of examples that all differ; the test split is drawn first.

    Args:
        task: its name, for errors.
        draw: one example of `question`, `steps` and `answer`, from these random numbers alone.
        train, validation, test: examples per split.
        seed: of the random numbers.
        key: of an example; two with the same are the same, and only the first is taken.

    Raises:
        ValueError: for a negative size, or if there are not enough different questions.
    """
    if min(train, validation, test) < 0:
        raise ValueError(f"{task}: train, validation and test must be at least 0")
    source, examples, repeated = random.Random(seed), {}, 0
    while len(examples) < train + validation + test:
        example = draw(source)
        repeated = repeated + 1 if (name := key(example)) in examples else 0
        examples.setdefault(name, example)
        if repeated == PATIENCE:
            raise ValueError(f"{task}: these settings give little more than {len(examples)} questions; ask for fewer")
    rows = list(examples.values())
    return {"test": rows[:test], "validation": rows[test : test + validation], "train": rows[test + validation :]}

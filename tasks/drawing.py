"""Different questions, drawn one after the other and divided into splits."""

import random
from collections.abc import Callable, Hashable

Draw = Callable[
    [random.Random], dict
]  # one example of `question`, `steps` and `answer`, from these random numbers alone
PATIENCE = 1_000  # draws in a row that give no new question


def question_of(example: dict) -> str:
    return example["question"]


def draw_splits(
    task: str, draw: Draw, train: int, validation: int, test: int, seed: int, key: Callable[[dict], Hashable]
) -> dict[str, list[dict]]:
    """Train, validation and test of examples whose keys all differ; the test split is drawn first.

    Raises ValueError, with the task's name, for a negative size, or if there are not enough different questions.
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

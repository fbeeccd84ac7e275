"""Chains of arithmetic, worked from left to right: `7+3*4-2+9=`, steps 0, 0, 8, 7, answer 7 (mod 10)."""

import random

OPERATORS = "+-*"


def splits(
    operations: int = 4,
    modulus: int = 10,
    train: int = 40_000,
    validation: int = 500,
    test: int = 2_000,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Train, validation and test, which share no question.

    Args:
        operations: operators a question.
        modulus: values are taken modulo this; 0 for plain integers.
        train, validation, test: examples a split.
        seed: of the random numbers.

    Raises:
        ValueError: for a setting out of range, or if there are not enough different questions.
    """
    if operations < 1 or modulus < 0:
        raise ValueError("chain: operations must be at least 1 and modulus at least 0")
    if min(train, validation, test) < 0:
        raise ValueError("chain: train, validation and test must be at least 0")
    wanted = train + validation + test
    if wanted > 10 * (10 * len(OPERATORS)) ** operations // 2:
        raise ValueError(f"chain: {wanted} examples are more than half of all questions with {operations} operations")
    source, seen, examples = random.Random(seed), set(), []
    while len(examples) < wanted:
        example = draw(source, operations, modulus)
        if example["question"] not in seen:
            seen.add(example["question"])
            examples.append(example)
    return {
        "test": examples[:test],
        "validation": examples[test : test + validation],
        "train": examples[test + validation :],
    }


def draw(source: random.Random, operations: int, modulus: int) -> dict:
    """One example; the last step is the answer."""
    value = source.randrange(10)
    question, steps = str(value), []
    for _ in range(operations):
        operator, operand = source.choice(OPERATORS), source.randrange(10)
        question += f"{operator}{operand}"
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        value = value % modulus if modulus else value
        steps.append(str(value))
    return {"question": question + "=", "steps": steps, "answer": steps[-1]}

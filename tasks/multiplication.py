"""n x n digits, multiplied as at school, in the format of the stepwise-internalisation data sets.

Digits are reversed and set apart; the chain holds the partial products, each shifted by one more place, and after all
but the first and the last the running sum in brackets:

    5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + ... #### 5 5 6 0 8 2 0 1
"""

import random
from pathlib import Path

PUBLISHED = Path(__file__).resolve().parent / "published_operands.txt"


def splits(
    digits: int = 4, train: int = 100_000, validation: int = 500, test: int = 1_000, seed: int = 0
) -> dict[str, list[dict]]:
    """Train, validation and test, which share no pair of operands, nor any pair of the published validation files.

    Args:
        digits: of each operand; the first is never 0.
        train, validation, test: examples a split.
        seed: of the random numbers.

    Raises:
        ValueError: if there are not enough pairs.
    """
    if digits < 1 or min(train, validation, test) < 0:
        raise ValueError("multiplication: digits must be at least 1, and no split smaller than 0")
    low, high = 10 ** (digits - 1), 10**digits
    wanted, seen = train + validation + test, published_pairs()
    if wanted > (high - low) ** 2 * 3 // 4:
        raise ValueError(f"multiplication: {wanted} examples are too many for {digits} x {digits} digits")
    source, examples = random.Random(seed), []
    while len(examples) < wanted:
        pair = source.randrange(low, high), source.randrange(low, high)
        if pair not in seen:
            seen.add(pair)
            examples.append(example_of(*pair))
    return {
        "test": examples[:test],
        "validation": examples[test : test + validation],
        "train": examples[test + validation :],
    }


def published_pairs() -> set[tuple[int, int]]:
    """The operands of the published validation files (4 x 4, 5 x 5 and 7 x 7 digits)."""
    return {tuple(map(int, line.split())) for line in PUBLISHED.read_text().splitlines()}


def example_of(a: int, b: int) -> dict:
    """The worked multiplication of two numbers of equally many digits."""
    digits = len(str(a))
    parts, total = [], 0
    for place, digit in enumerate(reversed(str(b))):
        product = a * int(digit)
        total += product * 10**place
        part = "0 " * place + spaced(product, digits + 1)
        if 0 < place < digits - 1:
            part += f" ( {spaced(total, digits + 1 + place)} )"
        parts.append(part)
    return {
        "question": f"{spaced(a, digits)} * {spaced(b, digits)}",
        "steps": [" + ".join(parts)],
        "answer": spaced(a * b, 2 * digits),
    }


def spaced(number: int, width: int) -> str:
    """Digits of a number, the last first, padded with zeros: 90, width 3 -> `0 9 0`."""
    return " ".join(reversed(str(number).zfill(width)))

"""n x n digits, multiplied as at school, in the format of the stepwise-internalisation data sets.

Digits are reversed and set apart; the chain holds the partial products, each shifted by one more place, and after all
but the first and the last the running sum in brackets:

    5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + ... #### 5 5 6 0 8 2 0 1
"""

import random
from pathlib import Path

from .drawing import Draw

PUBLISHED = Path(__file__).resolve().parent / "published_operands.txt"


def drawer(digits: int = 4) -> Draw:
    """What draws an example, of no pair of the published validation files; raises ValueError for a setting out of range.

    Args:
        digits: of each operand; the first is never 0.
    """
    if digits < 1:
        raise ValueError("multiplication: digits must be at least 1")
    low, high, published = 10 ** (digits - 1), 10**digits, published_pairs()

    def draw(source: random.Random) -> dict:
        while (pair := (source.randrange(low, high), source.randrange(low, high))) in published:
            pass
        return example_of(*pair)

    return draw


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

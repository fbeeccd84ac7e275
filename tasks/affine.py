"""Affine maps of the numbers modulo m, applied one after the other: `3 2x+1 4x+5`, steps 0, 5, answer 5 (mod 7).

Composition is associative, so windows of maps can be composed before the value is known.
"""

import random
from math import gcd

from .drawing import draw_splits

Map = tuple[int, int]  # slope and shift


def splits(
    maps: int = 8,
    modulus: int = 7,
    values: int = 1,
    train: int = 40_000,
    validation: int = 500,
    test: int = 2_000,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Train, validation and test, which share no question.

    Args:
        maps: per question. Their slopes have an inverse, so that no map forgets what came before it.
        modulus: numbers are taken modulo this.
        values: 1 for a number first and a number after every map; 0 for maps alone, whose steps are the maps composed so
            far, from the second on.
        train, validation, test: examples per split.
        seed: of the random numbers.

    Raises:
        ValueError: for a setting out of range, or if there are not enough different questions.
    """
    if values not in (0, 1) or maps < 2 - values or modulus < 2:
        raise ValueError("affine: values must be 0 or 1, maps at least 1 (2 without values) and modulus at least 2")
    slopes = [slope for slope in range(1, modulus) if gcd(slope, modulus) == 1]

    def draw(source: random.Random) -> dict:
        drawn = [(source.choice(slopes), source.randrange(modulus)) for _ in range(maps)]
        return example_of(source.randrange(modulus) if values else None, drawn, modulus)

    return draw_splits("affine", draw, train, validation, test, seed)


def example_of(value: int | None, maps: list[Map], modulus: int) -> dict:
    """The maps applied to a value, or, without one, composed; the last step is the answer."""
    words = [written(each) for each in maps]
    if value is None:
        steps, done = [], maps[0]
        for each in maps[1:]:
            done = compose(done, each, modulus)
            steps.append(written(done))
    else:
        words, steps = [str(value), *words], []
        for slope, shift in maps:
            value = (slope * value + shift) % modulus
            steps.append(str(value))
    return {"question": " ".join(words), "steps": steps, "answer": steps[-1]}


def compose(first: Map, then: Map, modulus: int) -> Map:
    """The map that applies `first`, then `then`."""
    return then[0] * first[0] % modulus, (then[0] * first[1] + then[1]) % modulus


def written(map_: Map) -> str:
    return f"{map_[0]}x+{map_[1]}"

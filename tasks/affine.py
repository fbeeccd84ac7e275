"""Affine maps of the numbers modulo m, applied one after the other: `3 2x+1 4x+5`, steps 0, 5, answer 5 (mod 7).

Composition is associative, so windows of maps can be composed before the value is known.
"""

import random
from functools import partial
from itertools import accumulate
from math import gcd

from .drawing import Draw
from .windows import windows_of

Map = tuple[int, int]  # slope and shift


def drawer(maps: int = 8, modulus: int = 7, values: int = 1, first: int = 0, windows: int = 0) -> Draw:
    """What draws an example; raises ValueError for a setting out of range.

    Args:
        maps: per question. Their slopes have an inverse, so that no map forgets what came before it.
        modulus: numbers are taken modulo this.
        values: 1 for a number first and a number after every map; 0 for maps alone, whose steps are the maps composed so
            far, from the second on.
        first: 1 for steps that begin with the first map itself (without values).
        windows: 1 for steps that do, and what each of them stands for after each pass (`windows_of`, without values).
    """
    if values not in (0, 1) or maps < 2 - values or modulus < 2:
        raise ValueError("affine: values must be 0 or 1, maps at least 1 (2 without values) and modulus at least 2")
    if not {first, windows} <= {0, 1} or (values and (first or windows)):
        raise ValueError("affine: first and windows must be 0 or 1, and 1 only with values=0")
    slopes = [slope for slope in range(1, modulus) if gcd(slope, modulus) == 1]

    def draw(source: random.Random) -> dict:
        drawn = [(source.choice(slopes), source.randrange(modulus)) for _ in range(maps)]
        if values:
            return applied_example(source.randrange(modulus), drawn, modulus)
        return composed_example(drawn, modulus, bool(first), bool(windows))

    return draw


def applied_example(value: int, maps: list[Map], modulus: int) -> dict:
    """The maps applied to a value; the last step is the answer."""
    words, steps = [str(value), *map(written, maps)], []
    for slope, shift in maps:
        value = (slope * value + shift) % modulus
        steps.append(str(value))
    return {"question": " ".join(words), "steps": steps, "answer": steps[-1]}


def composed_example(maps: list[Map], modulus: int, first: bool, windows: bool) -> dict:
    """The maps composed; the last step is the answer. See `drawer` for `first` and `windows`."""
    composed = partial(compose, modulus=modulus)
    steps = [written(each) for each in accumulate(maps, composed)][0 if first or windows else 1 :]
    example = {"question": " ".join(map(written, maps)), "steps": steps, "answer": steps[-1]}
    if windows:
        example["windows"] = [[written(each) for each in row] for row in windows_of(maps, composed)]
    return example


def compose(first: Map, then: Map, modulus: int) -> Map:
    """The map that applies `first`, then `then`."""
    return then[0] * first[0] % modulus, (then[0] * first[1] + then[1]) % modulus


def written(map_: Map) -> str:
    return f"{map_[0]}x+{map_[1]}"

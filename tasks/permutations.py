"""Permutations, applied one after the other (state tracking): `21345 23451`, step and answer 13452.

A permutation is written as places: the item that it puts first comes from the place that its first digit names, and so
on. A step is the arrangement of 12345 after one more permutation, which is their composition so far.
"""

import random
from itertools import accumulate, combinations, permutations

from .drawing import Draw
from .windows import windows_of


def drawer(items: int = 5, length: int = 8, swaps: int = 0, first: int = 0, windows: int = 0) -> Draw:
    """What draws an example; raises ValueError for a setting out of range.

    Args:
        items: that are permuted, 2 to 9; 5 for the group S5.
        length: permutations per question; there is one step fewer, but for `first` and `windows`.
        swaps: 1 for permutations that exchange two items each; 0 for any.
        first: 1 for steps that begin with the first permutation itself.
        windows: 1 for steps that do, and what each of them stands for after each pass (`windows_of`).
    """
    if not 2 <= items <= 9 or length < 2 or swaps not in (0, 1):
        raise ValueError("permutations: items must be from 2 to 9, length at least 2, and swaps 0 or 1")
    if not {first, windows} <= {0, 1}:
        raise ValueError("permutations: first and windows must be 0 or 1")
    places = "123456789"[:items]
    words = [exchanged(places, *pair) for pair in combinations(range(items), 2)] if swaps else None
    words = words or ["".join(order) for order in permutations(places)]

    def draw(source: random.Random) -> dict:
        return example_of(source.choices(words, k=length), bool(first), bool(windows))

    return draw


def exchanged(word: str, one: int, other: int) -> str:
    letters = list(word)
    letters[one], letters[other] = letters[other], letters[one]
    return "".join(letters)


def example_of(words: list[str], first: bool, windows: bool) -> dict:
    """The permutations applied in their order; the last step is the answer. See `drawer` for `first` and `windows`."""
    steps = list(accumulate(words, compose))[0 if first or windows else 1 :]
    example = {"question": " ".join(words), "steps": steps, "answer": steps[-1]}
    return example | ({"windows": windows_of(words, compose)} if windows else {})


def compose(first: str, then: str) -> str:
    """The permutation that applies `first`, then `then`."""
    return "".join(first[int(place) - 1] for place in then)

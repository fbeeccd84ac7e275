"""Permutations, applied one after the other (state tracking): `21345 23451`, step and answer 13452.

A permutation is written as places: the item that it puts first comes from the place that its first digit names, and so
on. A step is the arrangement of 12345 after one more permutation, which is their composition so far.
"""

import random
from itertools import combinations, permutations

from .drawing import draw_splits


def splits(
    items: int = 5,
    length: int = 8,
    swaps: int = 0,
    train: int = 40_000,
    validation: int = 500,
    test: int = 2_000,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Train, validation and test, which share no question.

    Args:
        items: that are permuted, 2 to 9; 5 for the group S5.
        length: permutations per question; there is one step fewer.
        swaps: 1 for permutations that exchange two items each; 0 for any.
        train, validation, test: examples per split.
        seed: of the random numbers.

    Raises:
        ValueError: for a setting out of range, or if there are not enough different questions.
    """
    if not 2 <= items <= 9 or length < 2 or swaps not in (0, 1):
        raise ValueError("permutations: items must be from 2 to 9, length at least 2, and swaps 0 or 1")
    places = "123456789"[:items]
    words = [exchanged(places, *pair) for pair in combinations(range(items), 2)] if swaps else None
    words = words or ["".join(order) for order in permutations(places)]

    def draw(source: random.Random) -> dict:
        return example_of(source.choices(words, k=length))

    return draw_splits("permutations", draw, train, validation, test, seed)


def exchanged(word: str, one: int, other: int) -> str:
    letters = list(word)
    letters[one], letters[other] = letters[other], letters[one]
    return "".join(letters)


def example_of(words: list[str]) -> dict:
    """The permutations applied in their order; the last step is the answer."""
    steps, done = [], words[0]
    for word in words[1:]:
        done = compose(done, word)
        steps.append(done)
    return {"question": " ".join(words), "steps": steps, "answer": steps[-1]}


def compose(first: str, then: str) -> str:
    """The permutation that applies `first`, then `then`."""
    return "".join(first[int(place) - 1] for place in then)

"""Parity of k bits among n (k-parity): `0110`, with all four bits steps 0, 1, 0, 0, answer 0."""

import random

from .drawing import draw_splits


def splits(
    bits: int = 20,
    relevant: int = 8,
    places: int = 0,
    train: int = 40_000,
    validation: int = 500,
    test: int = 2_000,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Train, validation and test, which share no question.

    Args:
        bits: per question.
        relevant: bits whose parity is asked for. They stand at the same places in every question, and no question says
            where; 0 for all bits.
        places: seed of the places of the relevant bits.
        train, validation, test: examples per split.
        seed: of the random numbers.

    Raises:
        ValueError: for a setting out of range, or if there are not enough different questions.
    """
    if bits < 1 or not 0 <= relevant <= bits:
        raise ValueError("parity: bits must be at least 1, and relevant from 0 to bits")
    chosen = relevant_places(bits, relevant, places)

    def draw(source: random.Random) -> dict:
        question, steps, parity = "".join(source.choices("01", k=bits)), [], 0
        for place in chosen:
            parity ^= int(question[place])
            steps.append(str(parity))
        return {"question": question, "steps": steps, "answer": steps[-1]}

    return draw_splits("parity", draw, train, validation, test, seed)


def relevant_places(bits: int, relevant: int, seed: int) -> list[int]:
    """The places of the relevant bits, from 0, in their order."""
    return sorted(random.Random(seed).sample(range(bits), relevant or bits))

"""Parity of k bits among n (k-parity): `0110`, with all four bits steps 0, 1, 0, 0, answer 0."""

import random

from .drawing import Draw


def drawer(bits: int = 20, relevant: int = 8, places: int = 0) -> Draw:
    """What draws an example; raises ValueError for a setting out of range.

    Args:
        bits: per question.
        relevant: bits whose parity is asked for. They stand at the same places in every question, and no question says
            where; 0 for all bits.
        places: seed of the places of the relevant bits.
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

    return draw


def relevant_places(bits: int, relevant: int, seed: int) -> list[int]:
    """The places of the relevant bits, from 0, in their order."""
    return sorted(random.Random(seed).sample(range(bits), relevant or bits))

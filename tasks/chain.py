"""Chains of arithmetic, worked from left to right: `7+3*4-2+9=`, steps 0, 0, 8, 7, answer 7 (mod 10)."""

import random
from math import gcd

from .drawing import Draw

OPERATORS = "+-*"


def drawer(operations: int = 4, modulus: int = 10, min_operations: int = 0, invertible: int = 0) -> Draw:
    """What draws an example; raises ValueError for a setting out of range.

    Args:
        operations: operators per question.
        modulus: values are taken modulo this; 0 for plain integers.
        min_operations: questions have from so many to `operations` operators, each number equally often as long as there
            are new questions; 0 for `operations` in every question.
        invertible: 1 to multiply only by digits that share no factor with the modulus (without a modulus: not by 0), so
            that no operation forgets what came before it.
    """
    if operations < 1 or modulus < 0:
        raise ValueError("chain: operations must be at least 1 and modulus at least 0")
    if not 0 <= min_operations <= operations or invertible not in (0, 1):
        raise ValueError("chain: min_operations must be from 0 to operations, and invertible 0 or 1")
    factors = [digit for digit in range(10) if not invertible or gcd(digit, modulus) == 1 or (not modulus and digit)]

    def draw(source: random.Random) -> dict:
        count = source.randint(min_operations, operations) if min_operations else operations
        return example_of(source, count, modulus, factors)

    return draw


def example_of(source: random.Random, operations: int, modulus: int, factors: list[int]) -> dict:
    """One example; the last step is the answer."""
    value = source.randrange(10)
    question, steps = str(value), []
    for _ in range(operations):
        operator = source.choice(OPERATORS)
        operand = source.choice(factors) if operator == "*" else source.randrange(10)
        question += f"{operator}{operand}"
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        value = value % modulus if modulus else value
        steps.append(str(value))
    return {"question": question + "=", "steps": steps, "answer": steps[-1]}

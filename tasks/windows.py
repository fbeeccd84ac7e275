"""Windows of elements that are composed: what each latent can stand for after each pass of a Jacobi iteration.

Composition is associative, so a latent need not wait for all that comes before it. The hidden state that becomes latent i
sees the question and the latents before i. If each of those stands for the w elements that end at its own, then element i,
latent i - 1 and latent i - 1 - w make a window of 2 w + 1: of 1, 3, 7, 15, ... elements after pass 0, 1, 2, 3, ...
"""

from collections.abc import Callable
from functools import reduce
from typing import TypeVar

Element = TypeVar("Element")


def windows_of(elements: list[Element], compose: Callable[[Element, Element], Element]) -> list[list[Element]]:
    """Of each pass, what the window that ends at each element makes; in the last pass it is all up to that element."""
    widths = [1]
    while widths[-1] < len(elements):
        widths.append(2 * widths[-1] + 1)
    ends = range(1, len(elements) + 1)
    return [[reduce(compose, elements[max(0, end - width) : end]) for end in ends] for width in widths]

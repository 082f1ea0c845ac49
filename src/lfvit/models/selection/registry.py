"""The table of selectors and what each returns."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Choice(NamedTuple):
    """A selector's answer: the cells that become fine, and the window they come from, if any.

    region: (B, 2) row and column of the window's top-left cell, or None.
    cells: (B, k) row-major cells of the g x g grid, any order, k the same for every image.
    """

    region: Tensor | None
    cells: Tensor


Selector = Callable[[Tensor, int, float], Choice]
"""(score map (B, g, g) float32, region_size, alpha) -> Choice"""

SELECTORS: dict[str, Selector] = {}


def selector(name: str) -> Callable[[Selector], Selector]:
    """Register a selector under the name used by ``method.selector``."""

    def register(function: Selector) -> Selector:
        if name in SELECTORS:
            raise ValueError(f"two selectors are called {name!r}")
        SELECTORS[name] = function
        return function

    return register


def kept_count(alpha: float, candidates: int) -> int:
    """How many of `candidates` cells become fine: ceil(alpha * candidates).

    The product is rounded to 9 decimals first, so that alpha=0.92 keeps 23 of 25 cells, not the 24
    that the rounding error of binary fractions would give.
    """
    return math.ceil(round(alpha * candidates, 9))

"""The table of selectors and what each returns."""

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


class Scores(NamedTuple):
    """What a selector can choose by, float32, one value per coarse cell.

    gca: (B, g, g) class attention averaged over blocks. last: (B, g, g) of the last block alone.
    """

    gca: Tensor
    last: Tensor


Selector = Callable[[Scores, int, float], Choice]
"""(scores of B images, region_size, alpha) -> Choice"""

SELECTORS: dict[str, Selector] = {}


def selector(name: str) -> Callable[[Selector], Selector]:
    """Register a selector under the name used by ``method.selector``."""

    def register(function: Selector) -> Selector:
        if name in SELECTORS:
            raise ValueError(f"two selectors are called {name!r}")
        SELECTORS[name] = function
        return function

    return register

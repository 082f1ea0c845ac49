"""Selectors: from a score map over the coarse cells to the cells that become fine.

A selector is a function registered by name. To add one, put a function like those in `windows` into
a new file of this package under ``@selector("name")``: the model, the check of settings and the
tests over the registry pick it up.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lfvit.models.registry import Registry


class Scores(NamedTuple):
    """What a selector chooses by, float32, one value per coarse cell.

    gca: (B, g, g) class attention averaged over blocks. last: (B, g, g) of the last block alone.
    """

    gca: Tensor
    last: Tensor


class Choice(NamedTuple):
    """What a selector returns.

    region: (B, 2) row and column of the window's top-left cell, None without a window.
    cells: (B, k) row-major cells of the g x g grid, in any order, k the same for every image.
    """

    region: Tensor | None
    cells: Tensor


Selector = Callable[[Scores, int, float], Choice]
"""(scores, region_size, alpha) -> Choice"""

SELECTORS: Registry[Selector] = Registry()
selector = SELECTORS.register

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

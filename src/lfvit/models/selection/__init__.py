"""Where to look again: from a score map over the coarse grid to the cells that become fine.

A selector is a pure function on score maps, found by name. To add one, put a function like those in
`windows` into a new file of this package under ``@selector("name")``: the model, the configuration
checks and the parametrised tests pick it up from the registry.
"""

import importlib
import pkgutil
from typing import Any, NamedTuple

from torch import Tensor

from lfvit.models.selection.registry import (
    SELECTORS,
    Choice,
    Scores,
    Selector,
    selector,
)


class Selection(NamedTuple):
    """Which cells of the coarse g x g grid become fine, for every image of a batch.

    gca: (B, g, g) float32 score map.
    region: (B, 2) long, row and column of the window's top-left cell; None if there is no window.
    cells: (B, k) long, row-major cells that become fine, ascending.
    fine_indices: (B, 4k) long, row-major fine patches in the 2g x 2g grid, ascending.
    """

    gca: Tensor
    region: Tensor | None
    cells: Tensor
    fine_indices: Tensor

    def rows(self, images: Tensor) -> "Selection":
        """Those of some images of the batch, by number (K,)."""
        picked: Any = [None if part is None else part[images] for part in self]
        return Selection(*picked)


def select(scores: Scores, name: str, region_size: int, alpha: float) -> Selection:
    """Apply a registered selector to the scores of B images."""
    choice = SELECTORS[name](scores, region_size, alpha)
    cells = choice.cells.sort(dim=1).values
    fine = fine_patches(cells, scores.gca.shape[-1])
    return Selection(scores.gca, choice.region, cells, fine)


def fine_patches(cells: Tensor, grid: int) -> Tensor:
    """The 2 x 2 fine patches of each coarse cell: (B, k) in g x g -> (B, 4k) in 2g x 2g, sorted."""
    corner = (cells // grid) * (4 * grid) + (cells % grid) * 2  # top-left patch of the cell
    offsets = cells.new_tensor([0, 1, 2 * grid, 2 * grid + 1])
    return (corner[:, :, None] + offsets).flatten(1).sort(dim=1).values


def coarse_cell(fine_indices: Tensor, grid: int) -> Tensor:
    """The coarse cell each fine patch lies in: inverse of `fine_patches`, same shape."""
    return (fine_indices // (2 * grid) // 2) * grid + fine_indices % (2 * grid) // 2


def remaining_cells(cells: Tensor, grid: int) -> Tensor:
    """The cells that stay coarse: (B, k) ascending -> (B, g*g - k) ascending."""
    chosen = cells.new_zeros(cells.shape[0], grid * grid).scatter_(1, cells, 1)
    return chosen.argsort(dim=1, stable=True)[:, : grid * grid - cells.shape[1]]


def score_cells(rows: list[Tensor], beta: float, grid: int) -> Scores:
    """Scores of the coarse cells from the class attention of the counted blocks.

    GCA is an exponential average  that starts from zero,
    ``a_l = beta * a_(l-1) + (1 - beta) * row_l`` (LF-ViT Eq. 8, CF-ViT Eq. 9).

    Args:
        rows: one (B, g*g) class attention per counted block, first block first.
        beta: weight of the past, in [0, 1).
        grid: g.

    """
    average = rows[0].new_zeros(rows[0].shape)
    for row in rows:
        average = beta * average + (1 - beta) * row
    return Scores(*(values.unflatten(1, (grid, grid)) for values in (average, rows[-1])))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SELECTORS",
    "Choice",
    "Scores",
    "Selection",
    "Selector",
    "coarse_cell",
    "fine_patches",
    "remaining_cells",
    "score_cells",
    "select",
    "selector",
]

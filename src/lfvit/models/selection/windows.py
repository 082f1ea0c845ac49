"""Selectors that place one m x m window and keep the best cells inside it (LF-ViT)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.models.indexing import highest, kept_count
from lfvit.models.selection.registry import Choice, Scores, selector


def window_sums(gca: Tensor, size: int) -> Tensor:
    """NGCA: the score inside every window, stride 1 (LF-ViT Eq. 9).

    (B, g, g) -> (B, g-m+1, g-m+1)
    """
    return F.avg_pool2d(gca[:, None], size, stride=1, divisor_override=1)[:, 0]


def keep_inside(gca: Tensor, corner: Tensor, size: int, alpha: float) -> Choice:
    """The ceil(alpha*m*m) cells of highest score inside each image's window.

    Args:
        gca: (B, g, g)
        corner: (B, 2) row and column of the window's top-left cell.
    """
    grid = gca.shape[-1]
    steps = torch.arange(size, device=gca.device)
    inside = (steps[:, None] * grid + steps).flatten()  # (m*m,) cells relative to the corner
    cells = (corner[:, :1] * grid + corner[:, 1:]) + inside  # (B, m*m)
    best = highest(gca.flatten(1).gather(1, cells), kept_count(alpha, size * size))
    return Choice(corner, cells.gather(1, best))


def corner_of(index: Tensor, columns: int) -> Tensor:
    """Row-major position (B,) -> row and column (B, 2)."""
    return torch.stack([index // columns, index % columns], dim=1)


def around(cell: Tensor, grid: int, size: int) -> Tensor:
    """Corner (B, 2) of the window centred on a cell (B,), shifted to lie inside the grid.

    An even window has no centre cell; the cell is then the lower right of the four middle ones.
    """
    return (corner_of(cell, grid) - size // 2).clamp(0, grid - size)


def _best_window(gca: Tensor, size: int) -> Tensor:
    sums = window_sums(gca, size)
    return corner_of(sums.flatten(1).argmax(dim=1), sums.shape[-1])  # argmax: first on a tie


def _worst_window(gca: Tensor, size: int) -> Tensor:
    sums = window_sums(gca, size)
    return corner_of(sums.flatten(1).argmin(dim=1), sums.shape[-1])


def _around_highest(gca: Tensor, size: int) -> Tensor:
    return around(gca.flatten(1).argmax(dim=1), gca.shape[-1], size)


def _around_lowest(gca: Tensor, size: int) -> Tensor:
    return around(gca.flatten(1).argmin(dim=1), gca.shape[-1], size)


def _anywhere(gca: Tensor, size: int) -> Tensor:
    places = gca.shape[-1] - size + 1
    return torch.randint(places, (gca.shape[0], 2), device=gca.device)


def _register(name: str, place: Callable[[Tensor, int], Tensor]) -> None:
    """One selector per way of placing the window; what is kept inside is the same for all."""

    @selector(name)
    def choose(scores: Scores, region_size: int, alpha: float) -> Choice:
        corner = place(scores.gca, region_size)
        return keep_inside(scores.gca, corner, region_size, alpha)


_register("ngca", _best_window)  # LF-ViT Eq. 10
# the ablations of LF-ViT Table 6
_register("negative_ngca", _worst_window)
_register("maximum_gca", _around_highest)
_register("minimum_gca", _around_lowest)
_register("random", _anywhere)

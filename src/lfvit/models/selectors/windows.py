"""Selectors that place one m x m window and keep the best cells in it (LF-ViT)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.models.selectors import Choice, Scores, selector
from lfvit.models.tokens import num_keep, topk_indices


def window_sums(gca: Tensor, size: int) -> Tensor:
    """NGCA, the sum of every window, stride 1 (LF-ViT Eq. 9).

    (B, g, g) -> (B, g-m+1, g-m+1)
    """
    return F.avg_pool2d(gca[:, None], size, stride=1, divisor_override=1)[:, 0]


def keep_inside(gca: Tensor, corner: Tensor, size: int, alpha: float) -> Choice:
    """The ceil(alpha*m*m) cells of largest score in each image's window.

    Args:
        gca: (B, g, g)
        corner: (B, 2) row and column of the window's top-left cell.
    """
    grid = gca.shape[-1]
    steps = torch.arange(size, device=gca.device)
    inside = (steps[:, None] * grid + steps).flatten()  # (m*m,) cells relative to the corner
    cells = (corner[:, :1] * grid + corner[:, 1:]) + inside  # (B, m*m)
    best = topk_indices(gca.flatten(1).gather(1, cells), num_keep(alpha, size * size))
    return Choice(corner, cells.gather(1, best))


def row_and_column(index: Tensor, columns: int) -> Tensor:
    """Row-major index (B,) -> (B, 2)."""
    return torch.stack([index // columns, index % columns], dim=1)


def window_around(cell: Tensor, grid: int, size: int) -> Tensor:
    """Corner (B, 2) of the window centred on a cell (B,), shifted to lie inside the grid.

    An even window has no centre cell; the cell is then the lower right of the four middle ones.
    """
    return (row_and_column(cell, grid) - size // 2).clamp(0, grid - size)


@selector("ngca")
def largest_sum(scores: Scores, region_size: int, alpha: float) -> Choice:
    """The window of largest NGCA, the first on a tie (LF-ViT Eq. 10)."""
    sums = window_sums(scores.gca, region_size)
    corner = row_and_column(sums.flatten(1).argmax(dim=1), sums.shape[-1])
    return keep_inside(scores.gca, corner, region_size, alpha)


# the ablations of LF-ViT Table 6


@selector("negative_ngca")
def smallest_sum(scores: Scores, region_size: int, alpha: float) -> Choice:
    sums = window_sums(scores.gca, region_size)
    corner = row_and_column(sums.flatten(1).argmin(dim=1), sums.shape[-1])
    return keep_inside(scores.gca, corner, region_size, alpha)


@selector("maximum_gca")
def around_largest_gca(scores: Scores, region_size: int, alpha: float) -> Choice:
    cell, grid = scores.gca.flatten(1).argmax(dim=1), scores.gca.shape[-1]
    return keep_inside(scores.gca, window_around(cell, grid, region_size), region_size, alpha)


@selector("minimum_gca")
def around_smallest_gca(scores: Scores, region_size: int, alpha: float) -> Choice:
    cell, grid = scores.gca.flatten(1).argmin(dim=1), scores.gca.shape[-1]
    return keep_inside(scores.gca, window_around(cell, grid, region_size), region_size, alpha)


@selector("random")
def random_window(scores: Scores, region_size: int, alpha: float) -> Choice:
    B, grid, _ = scores.gca.shape
    corner = torch.randint(grid - region_size + 1, (B, 2), device=scores.gca.device)
    return keep_inside(scores.gca, corner, region_size, alpha)

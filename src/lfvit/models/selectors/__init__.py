"""Selectors: from a score map over the coarse cells to the cells that become fine.

A selector is a function registered by name. To add one, put a function like those in `windows` into
a new file of this package under ``@selector("name")``: the model, the check of settings and the
tests over the registry pick it up.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lfvit.models.registry import SELECTORS as SELECTORS
from lfvit.models.registry import selector as selector


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


class Selection(NamedTuple):
    """The cells of the coarse g x g grid that become fine.

    gca: (B, g, g) float32 score map.
    region: (B, 2) long, row and column of the window's top-left cell; None without a window.
    cells: (B, k) long, row-major cells that become fine, ascending.
    fine_indices: (B, 4k) long, row-major fine patches in the 2g x 2g grid, ascending.
    """

    gca: Tensor
    region: Tensor | None
    cells: Tensor
    fine_indices: Tensor


def select(scores: Scores, name: str, region_size: int, alpha: float) -> Selection:
    """Apply a registered selector to the scores of B images."""
    choice = SELECTORS[name](scores, region_size, alpha)
    cells, grid = choice.cells.sort(dim=1).values, scores.gca.shape[-1]
    corner = (cells // grid) * (4 * grid) + (cells % grid) * 2  # top-left patch of each cell
    pair = torch.arange(2, device=cells.device)  # numbers made on the host would wait for a GPU
    offsets = (pair[:, None] * 2 * grid + pair).flatten()  # of its 2 x 2 patches
    fine_indices = (corner[:, :, None] + offsets).flatten(1).sort(dim=1).values
    return Selection(scores.gca, choice.region, cells, fine_indices)


def coarse_cell(fine_indices: Tensor, grid: int) -> Tensor:
    """The cell of the g x g grid that each fine patch (B, 4k) of the 2g x 2g grid lies in."""
    return (fine_indices // (2 * grid) // 2) * grid + fine_indices % (2 * grid) // 2


def remaining_cells(cells: Tensor, grid: int) -> Tensor:
    """The cells that stay coarse: (B, k) ascending -> (B, g*g - k) ascending."""
    chosen = cells.new_zeros(cells.shape[0], grid * grid).scatter_(1, cells, 1)
    return chosen.argsort(dim=1, stable=True)[:, : grid * grid - cells.shape[1]]


def score_cells(class_attention: list[Tensor], beta: float, grid: int) -> Scores:
    """Scores of the coarse cells from the class attention of the counted blocks.

    GCA is an exponential moving average that starts from zero,
    ``a_l = beta * a_(l-1) + (1 - beta) * row_l`` (LF-ViT Eq. 8, CF-ViT Eq. 9).

    Args:
        class_attention: one (B, g*g) per counted block, first block first.
        beta: weight of the past, in [0, 1).
        grid: g.
    """
    average, last = class_attention[0].new_zeros(class_attention[0].shape), class_attention[-1]
    for row in class_attention:
        average = beta * average + (1 - beta) * row
    return Scores(average.unflatten(1, (grid, grid)), last.unflatten(1, (grid, grid)))

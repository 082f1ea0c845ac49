"""Which coarse cells become fine, and how coarse and fine grids correspond."""

from typing import NamedTuple

from torch import Tensor

from lfvit.models.selectors import SELECTORS, Scores


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

    def rows(self, images: Tensor) -> "Selection":
        """Those of some images of the batch, by index (K,)."""
        gca, region, cells, fine_indices = self
        region = None if region is None else region[images]
        return Selection(gca[images], region, cells[images], fine_indices[images])


def select(scores: Scores, name: str, region_size: int, alpha: float) -> Selection:
    """Apply a registered selector to the scores of B images."""
    choice = SELECTORS[name](scores, region_size, alpha)
    cells = choice.cells.sort(dim=1).values
    return Selection(scores.gca, choice.region, cells, fine_patches(cells, scores.gca.shape[-1]))


def fine_patches(cells: Tensor, grid: int) -> Tensor:
    """The 2 x 2 fine patches of each coarse cell: (B, k) in g x g -> (B, 4k) in 2g x 2g, sorted."""
    corner = (cells // grid) * (4 * grid) + (cells % grid) * 2  # top-left patch of the cell
    offsets = cells.new_tensor([0, 1, 2 * grid, 2 * grid + 1])
    return (corner[:, :, None] + offsets).flatten(1).sort(dim=1).values


def coarse_cell(fine_indices: Tensor, grid: int) -> Tensor:
    """The coarse cell of each fine patch: inverse of `fine_patches`, same shape."""
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
    average = class_attention[0].new_zeros(class_attention[0].shape)
    for row in class_attention:
        average = beta * average + (1 - beta) * row
    gca, last = (x.unflatten(1, (grid, grid)) for x in (average, class_attention[-1]))
    return Scores(gca, last)

"""How much of the object the second pass sees at full resolution, for data with boxes."""

import torch
from torch import Tensor

from lfvit.measure.schemas import Coverage
from lfvit.models.selectors import Selection


def region_mask(selection: Selection, region_size: int) -> Tensor:
    """(B, G, G) bool: the fine patches inside the window, or the selected ones without a window."""
    B, g, _ = selection.gca.shape
    G = 2 * g
    if selection.region is None:
        mask = torch.zeros(B, G * G, dtype=torch.bool, device=selection.gca.device)
        return mask.scatter_(1, selection.fine_indices, True).unflatten(1, (G, G))
    return _window_mask(selection.region, region_size, g)


def coverage(mask: Tensor, boxes: Tensor, image_size: int) -> Tensor:
    """Share (B,) of each box, x0, y0, x1, y1 in pixels (B, 4), inside the mask (B, G, G) over the
    fine patches of its image, S x S pixels.
    """
    rows, columns, area = _overlaps(boxes, mask.shape[-1], image_size)
    inside = rows[:, :, None] * mask * columns[:, None, :]  # (B, G, G) pixels; no product to round
    return inside.sum(dim=(1, 2)) / area


def random_windows(boxes: Tensor, grid: int, region_size: int, image_size: int) -> Coverage:
    """The expected coverage of boxes (B, 4) by a window at a uniformly random position, computed
    exactly. grid, region_size: sides of the coarse grid and of the window, in coarse cells.
    """
    positions = torch.arange(grid - region_size + 1, device=boxes.device)
    mask = _window_mask(torch.cartesian_prod(positions, positions), region_size, grid)  # (W, G, G)
    rows, columns, area = _overlaps(boxes, 2 * grid, image_size)
    covered = torch.einsum("bi,wij,bj->bw", rows, mask.to(rows), columns) / area[:, None]
    return summarize(covered.flatten())


def summarize(covered: Tensor) -> Coverage:
    """Mean of the shares (N,), and how many are 1."""
    whole = (covered > 1 - 1e-6).double().mean().item()
    return Coverage(covered=covered.mean().item(), whole=whole)


def _window_mask(corners: Tensor, size: int, grid: int) -> Tensor:
    """Top-left corners (W, 2) in coarse cells -> (W, G, G) bool over fine patches."""
    cells = torch.arange(2 * grid, device=corners.device) // 2
    inside = (cells >= corners[..., None]) & (cells < corners[..., None] + size)  # (W, 2, G)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def _overlaps(boxes: Tensor, patches: int, image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels each box shares with each row (B, G) and column (B, G) of patches; areas (B,)."""
    edges = torch.arange(patches + 1, device=boxes.device) * (image_size / patches)
    x0, y0, x1, y1 = boxes.to(edges).unbind(1)

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        upper = torch.minimum(high[:, None], edges[1:])
        return (upper - torch.maximum(low[:, None], edges[:-1])).clamp(min=0)

    return overlap(y0, y1), overlap(x0, x1), (x1 - x0) * (y1 - y0)

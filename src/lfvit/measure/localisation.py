"""Does the second pass look at the object? For data with boxes."""

import torch
from torch import Tensor

from lfvit.measure.schemas import Coverage
from lfvit.models.selection import Selection


def looked_at(selection: Selection, region_size: int) -> Tensor:
    """(B, G, G) bool: the fine patches inside the window, or the chosen ones if there is none."""
    B, g, _ = selection.gca.shape
    G = 2 * g
    if selection.region is None:
        mask = torch.zeros(B, G * G, dtype=torch.bool, device=selection.gca.device)
        return mask.scatter_(1, selection.fine_indices, True).unflatten(1, (G, G))
    return _windows(selection.region, region_size, g)


def coverage(mask: Tensor, boxes: Tensor, image_size: int) -> Tensor:
    """Share of each box that lies inside the marked patches.

    Args:
        mask: (B, G, G) or (W, G, G) bool. boxes: (B, 4) x0, y0, x1, y1 in pixels, half-open.
        image_size: S in pixels.

    Returns:
        (B,) if mask belongs to the images, in [0, 1].
    """
    rows, columns, area = _overlaps(boxes, mask.shape[-1], image_size)
    return torch.einsum("bi,bij,bj->b", rows, mask.to(rows), columns) / area


def random_windows(boxes: Tensor, grid: int, region_size: int, image_size: int) -> Coverage:
    """The yardstick: every place of the window equally likely; exact, nothing is drawn."""
    places = torch.cartesian_prod(*[torch.arange(grid - region_size + 1)] * 2).to(boxes.device)
    mask = _windows(places, region_size, grid)
    rows, columns, area = _overlaps(boxes, 2 * grid, image_size)
    covered = torch.einsum("bi,wij,bj->bw", rows, mask.to(rows), columns) / area[:, None]
    return summarise(covered.flatten())


def summarise(covered: Tensor) -> Coverage:
    """Shares (N,) -> their mean, and how many are whole."""
    return Coverage(
        covered=covered.mean().item(), whole=(covered > 1 - 1e-6).double().mean().item()
    )


def _windows(corners: Tensor, size: int, grid: int) -> Tensor:
    """Corners (B, 2) in coarse cells -> (B, 2g, 2g) bool over fine patches."""
    place = torch.arange(2 * grid, device=corners.device) // 2
    inside = (place >= corners[..., None]) & (place < corners[..., None] + size)  # (B, 2, 2g)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def _overlaps(boxes: Tensor, patches: int, image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels each box shares with each row (B, G) and column (B, G) of patches; areas (B,)."""
    edges = torch.arange(patches + 1, device=boxes.device) * (image_size / patches)
    boxes = boxes.to(edges)

    def overlap(low: Tensor, high: Tensor) -> Tensor:
        upper = torch.minimum(high[:, None], edges[1:])
        return (upper - torch.maximum(low[:, None], edges[:-1])).clamp(min=0)

    x0, y0, x1, y1 = boxes.unbind(1)
    return overlap(y0, y1), overlap(x0, x1), (x1 - x0) * (y1 - y0)

"""Mix-token: some cells of an image come from another image of the batch."""

from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""Top, left, bottom and right as shares of the image's side."""


class TokenMix(NamedTuple):
    """Replace the cells of a box by the same cells of the batch read backwards (Jiang et al. 2021).

    The box is aligned to cells of the coarse grid, so that both passes of a two-pass model see the
    same mixture, at any resolution.

    mask: (n, n) bool, the cells that come from the partner.
    """

    mask: Tensor

    @classmethod
    def from_box(cls, box: Box, grid: int, device: torch.device | None = None) -> "TokenMix":
        """The cells of an n x n grid that a box covers, its sides rounded to the nearest edge."""
        top, left, bottom, right = (round(side * grid) for side in box)
        mask = torch.zeros(grid, grid, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return cls(mask.to(device))

    def maps(self, maps: Tensor) -> Tensor:
        """Mix maps (B, C, M, M), M a multiple of n, along the edges of the cells."""
        scale = maps.shape[-1] // len(self.mask)
        mask = self.mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        return torch.where(mask, maps.flip(0), maps)

    def targets(self, targets: Tensor) -> Tensor:
        """Mix the labels of whole images, probabilities (B, C), by the area each of them has."""
        share = self.mask.to(targets.dtype).mean()
        return targets + share * (targets.flip(0) - targets)

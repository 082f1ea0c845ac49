"""Photographs, small, somewhere in clutter: the folder's own classes, with one place to look."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lfvit.data.folders import ImageFolder
from lfvit.data.images import center_crop, read_image

Box = tuple[int, int, int, int]

SIDE = (0.25, 0.4)  # of the photograph, as a share of the image's side, smallest and largest
TILES = 14  # pieces of clutter along each side of the image
SOURCES = 4  # photographs that an image's clutter is cut from


class ClutteredFolder(ImageFolder):
    """A folder of photographs, each shrunk and pasted into clutter, at a place that is known.

    The clutter is cut from photographs of the same split, in pieces too small to show what was on
    them. What is pasted, where and at which size depends on the split and the index alone.

    Args:
        split, root, val_fraction, split_seed: see `ImageFolder`.
        image_size: S in pixels.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str,
        image_size: int,
        val_fraction: float | None = None,
        split_seed: int | None = None,
    ) -> None:
        super().__init__(split, root=root, val_fraction=val_fraction, split_seed=split_seed)
        self.split, self.image_size = split, image_size

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int, Box]:  # type: ignore[override]
        """RGB pixels (S, S, 3), class, and the photograph's box x0, y0, x1, y1 in pixels."""
        rng = np.random.default_rng([self.split == "train", index])
        canvas = self._clutter(rng)
        side = round(self.image_size * rng.uniform(*SIDE))
        x, y = rng.integers(0, self.image_size - side, 2, endpoint=True).tolist()
        canvas[y : y + side, x : x + side] = self._square(index, side)
        return canvas, self.targets[index], (x, y, x + side, y + side)

    def name(self, index: int) -> str:
        return f"clutter {self.image_size} {super().name(index)}"

    def _clutter(self, rng: Generator) -> NDArray[np.uint8]:
        """(S, S, 3), every piece from a random place of one of a few photographs."""
        tile = -(-self.image_size // TILES)
        sources = [self._square(i, TILES * tile) for i in rng.integers(len(self), size=SOURCES)]
        pieces = np.stack(sources).reshape(SOURCES, TILES, tile, TILES, tile, 3)
        pieces = pieces.transpose(0, 1, 3, 2, 4, 5).reshape(-1, tile, tile, 3)
        chosen = pieces[rng.choice(len(pieces), TILES**2, replace=False)]
        canvas = chosen.reshape(TILES, TILES, tile, tile, 3).transpose(0, 2, 1, 3, 4)
        size = self.image_size
        return canvas.reshape(TILES * tile, TILES * tile, 3)[:size, :size].copy()

    def _square(self, index: int, side: int) -> NDArray[np.uint8]:
        return np.asarray(center_crop(read_image(self.paths[index]), side, 1.0, "bicubic"))

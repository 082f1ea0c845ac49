"""`data.cache=device`: training images, decoded once, on the device that trains on them.

Images are stored whole, resized to a square of S / crop_pct pixels a side; the crops and flips that
the files would get are cut from it on the device. They show the same parts, with no more detail
than the square has. The device should be a GPU: a CPU decodes most photographs in less time.
"""

import math
from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from lfvit.data.augment import WHOLE, TrainTransform, to_tensor
from lfvit.data.batches import LoadedImages, RawBatch, collate
from lfvit.data.images import FILTERS
from lfvit.data.sampling import Draw, LazyLoader
from lfvit.utils.seeding import seeded


class ImageCache(Dataset[tuple[int, Tensor, bool]]):
    """All training images on a device. As a dataset, it yields which part of which image is shown:
    its row, its crop and whether it is flipped; `fetch` makes batches of these into images.

    Args:
        images: what to load.
        device: where to keep them; every process keeps all of them.
        num_workers: processes that decode.
        report: called with every batch that is decoded; may raise.
    """

    def __init__(
        self,
        images: LoadedImages,
        device: torch.device,
        *,
        num_workers: int,
        report: Callable[[RawBatch], None],
    ) -> None:
        self.transform: TrainTransform | None = None
        self.image_size = images.image_size
        if not isinstance(images.images[0][0], np.ndarray):  # arrays are used as they are
            self.transform, images = images.transform, copy(images)
            images.image_size = math.floor(images.image_size / self.transform.augment.crop_pct)
            images.transform = partial(
                _squeeze,
                side=images.image_size,
                interpolation=self.transform.augment.interpolation,
            )
        side = images.image_size
        self.pixels = torch.empty(len(images), 3, side, side, dtype=torch.uint8, device=device)
        loader = LazyLoader(images, batch_size=64, num_workers=num_workers, collate_fn=collate)
        parts: list[RawBatch] = []
        for batch in track(loader, f"decoding {len(images)} training images"):
            report(batch)
            self.pixels[64 * len(parts) :][: len(batch.images)] = batch.images
            parts.append(batch._replace(images=torch.empty(0)))
        self.sizes = torch.cat([part.sizes for part in parts]).tolist()
        self.targets = torch.cat([part.targets for part in parts]).to(device)
        self.indices = torch.cat([part.indices for part in parts]).to(device)
        boxes = [part.boxes for part in parts if part.boxes is not None]
        self.boxes = torch.cat(boxes).to(device) if boxes else None

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, draw: Draw | int) -> tuple[int, Tensor, bool]:
        row, seed = draw if isinstance(draw, Draw) else (draw, 0)
        crop, flipped = WHOLE, False
        if self.transform is not None:
            with seeded(seed or 0, devices=False):
                crop, flipped = self.transform.draw(self.sizes[row])
        return row, torch.tensor(crop), flipped

    def fetch(self, rows: Tensor, crops: Tensor, flipped: Tensor) -> RawBatch:
        """The images of a batch that is on the cache's device.

        Args:
            rows: (B,) long.
            crops: (B, 4) left, top, right, bottom as shares of width and height.
            flipped: (B,) bool.
        """
        images, boxes = self.pixels[rows], None if self.boxes is None else self.boxes[rows]
        if self.transform is not None:
            mode = self.transform.crop.interpolation.value
            images = crop_and_resize(images.float(), crops, flipped, self.image_size, mode)
        return RawBatch(images, self.targets[rows], self.indices[rows], boxes, crops)


def crop_and_resize(
    images: Tensor, crops: Tensor, flipped: Tensor, size: int, mode: str = "bicubic"
) -> Tensor:
    """A crop of every image, resized, and flipped or not.

    Args:
        images: (B, 3, H, W) float, in 0..255.
        crops: (B, 4) left, top, right, bottom as shares of width and height.
        flipped: (B,) bool.
        size: S in pixels.
        mode: "bilinear" or "bicubic", without antialiasing: crops of a stored image are hardly
            ever larger than S.

    Returns:
        (B, 3, S, S) float, in 0..255.
    """
    left, top, right, bottom = crops.unbind(1)
    theta = crops.new_zeros(len(crops), 2, 3)  # of an affine map to coordinates in -1..1
    theta[:, 0, 0] = torch.where(flipped, left - right, right - left)
    theta[:, 0, 2] = left + right - 1
    theta[:, 1, 1] = bottom - top
    theta[:, 1, 2] = top + bottom - 1
    grid = F.affine_grid(theta, [len(crops), 3, size, size], align_corners=False)
    resized = F.grid_sample(images, grid, mode, padding_mode="reflection", align_corners=False)
    return resized.clamp_(0, 255)


def _squeeze(image: Image.Image, side: int, interpolation: str) -> Tensor:
    """A photograph -> (3, side, side) uint8, all of it, whatever its proportions."""
    return to_tensor(image.resize((side, side), FILTERS[interpolation]))

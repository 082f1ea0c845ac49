"""`data.cache=device`: the images of a dataset, decoded once, on the device that trains on them.

Evaluation gets from the cache what it would get from the files. Training images are stored whole,
resized to a square of S / crop_pct pixels a side; the crops and flips that the files would get are
cut from it on the device. They show the same parts, with no more detail than the square has. The
device should be a GPU: a CPU decodes and crops most photographs in less time.

Every process of a distributed run keeps all training images, since each epoch deals them out anew,
and its part of the validation images.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lfvit.data.augment import WHOLE, TrainTransform, to_tensor
from lfvit.data.batches import LoadedImages, RawBatch, collate
from lfvit.data.images import resize
from lfvit.data.sampling import Draw
from lfvit.errors import ConfigError
from lfvit.utils.seeding import seeded

MODES = ("bilinear", "bicubic")


class CachedBatch(NamedTuple):
    """Which images of a cache make a batch; a few bytes instead of the pixels.

    split: "train" or "val". rows: (B,) long, their rows in the cache. crops: (B, 4) left, top,
    right, bottom as shares of width and height. flipped: (B,) bool.
    """

    split: str
    rows: Tensor
    crops: Tensor
    flipped: Tensor


class ImageCache(Dataset[Draw]):
    """Images on a device. As a dataset it yields the sampler's draws as they are; `collate` turns
    them into rows and crops, and `fetch` these into images, once they are on the device.

    Args:
        split: "train" or "val".
        images: what to load.
        indices: which of them, consecutive; the cache has another row without image.
        device: where to keep them.
        num_workers: processes that decode.
        report: called with every batch that is decoded; may raise.
        verbose: show a progress bar.

    Raises:
        ConfigError: too little memory, or an augmentation that is not possible on the device.
    """

    def __init__(
        self,
        split: str,
        images: LoadedImages,
        indices: range,
        device: torch.device,
        *,
        num_workers: int,
        report: Callable[[RawBatch], None],
        verbose: bool,
    ) -> None:
        self.split, self.first, self.length = split, indices.start, len(images)
        self.transform = None  # where images are used as they are stored
        varied = isinstance(images.transform, TrainTransform)
        if varied and not isinstance(images.images[0][0], np.ndarray):
            self.transform, images = images.transform, stored_whole(images)
        draws = [*map(Draw, indices), Draw(-1)]
        shape = (len(draws), 3, images.image_size, images.image_size)
        check_memory(math.prod(shape), device)
        self.images = torch.zeros(shape, dtype=torch.uint8, device=device)
        parts: list[RawBatch] = []
        loader = DataLoader(
            images, sampler=draws, batch_size=64, num_workers=num_workers, collate_fn=collate
        )
        title = f"decoding {len(indices)} {split} images"
        for batch in track(loader, title, disable=not verbose):
            report(batch)
            first = 64 * len(parts)
            self.images[first : first + len(batch.images)] = batch.images
            parts.append(batch._replace(images=torch.empty(0)))
        self.targets = torch.cat([part.targets for part in parts]).to(device)
        self.indices = torch.cat([part.indices for part in parts]).to(device)
        self.sizes = torch.cat([part.sizes for part in parts]).tolist()
        self.boxes = None
        if any(part.boxes is not None for part in parts):
            none = torch.zeros(64, 4, dtype=torch.long)  # of a batch without a readable image
            boxes = [none[: len(p.targets)] if p.boxes is None else p.boxes for p in parts]
            self.boxes = torch.cat(boxes).to(device)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw | int) -> Draw:
        return draw if isinstance(draw, Draw) else Draw(draw, 0)

    def collate(self, draws: Sequence[Draw]) -> CachedBatch:
        """The rows of a batch, and the crops that the files would get from the same seeds."""
        rows = [-1 if draw.index < 0 else draw.index - self.first for draw in draws]
        shown = [(WHOLE, False)] * len(rows)
        if self.transform is not None:
            for number, (row, draw) in enumerate(zip(rows, draws, strict=True)):
                with seeded(draw.seed or 0, devices=False):
                    shown[number] = self.transform.draw(self.sizes[row])
        crops, flipped = map(torch.tensor, zip(*shown, strict=True))
        return CachedBatch(self.split, torch.tensor(rows), crops, flipped)

    def fetch(self, batch: CachedBatch) -> RawBatch:
        """The images of a batch that is on the cache's device."""
        images, rows = self.images[batch.rows], batch.rows
        if self.transform is not None:
            size, mode = self.transform.crop.size[0], self.transform.crop.interpolation.value
            images = crop_and_resize(images.float(), batch.crops, batch.flipped, size, mode)
        boxes = None if self.boxes is None else self.boxes[rows]
        return RawBatch(images, self.targets[rows], self.indices[rows], boxes, batch.crops)


def stored_whole(images: LoadedImages) -> LoadedImages:
    """Training images without crops and flips, all of each in a square.

    Raises:
        ConfigError: an augmentation that is not possible on the device.
    """
    augment = images.transform.augment
    possible = {"auto_augment": (None, "null"), "color_jitter": (0, "0"), "interpolation": MODES}
    for name, valid in possible.items():
        if (value := getattr(augment, name)) not in valid:
            raise ConfigError(
                f"data.cache=device crops and flips images, and cannot do augment.{name}={value}; "
                f"set augment.{name}={valid[-1]}, or data.cache=null"
            )
    whole = copy(images)
    whole.image_size = math.floor(images.image_size / augment.crop_pct)
    whole.transform = partial(_squeeze, side=whole.image_size, interpolation=augment.interpolation)
    return whole


def _squeeze(image: Image.Image, side: int, interpolation: str) -> Tensor:
    """A photograph -> (3, side, side) uint8, all of it, whatever its proportions."""
    return to_tensor(resize(image, (side, side), interpolation))


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


def check_memory(needed: int, device: torch.device) -> None:
    """Refuse what does not fit, before an hour of decoding.

    Raises:
        ConfigError: `device` has fewer than `needed` bytes free; where that is unknown, none.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"data.cache=device needs {needed / 1e9:.3g} GB on {device}, where {free / 1e9:.3g} GB "
            "are free; set data.cache=null, or a smaller image_size"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a GPU; None on another device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None

"""`data.cache=device`: a set of images, decoded once, on the device that trains on them.

Evaluation gets from the cache what it would get from the files. Training images that are cropped
at random are stored whole, squeezed into a square of S / crop_pct pixels a side. Crops are drawn in
the photograph's own pixels, and stretched back as they are cut: they show what crops of the file
would show, with no more detail than the square has. At S = 224, from JPEGs of 500 x 375 pixels, the
two differ by 1 grey level on average where the photographs are soft, by 3.5 where they have detail
in every pixel.

The device should be a GPU: a CPU decodes and crops most photographs in less time than it takes to
cut the crop as matrix products.

Every process of a distributed run keeps all training images, since each epoch deals them out anew,
and its own part of the validation images.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lfvit.data.batches import (
    ImageSource,
    Note,
    RawBatch,
    Sample,
    Unreadable,
    collate,
    notes_on,
)
from lfvit.data.crops import RandomCrops
from lfvit.data.images import UnreadableImageError, full_size
from lfvit.data.sampling import NOTHING, Draw
from lfvit.data.workers import Desk
from lfvit.errors import ConfigError, DataError

CACHES = ("device",)


class CachedBatch(NamedTuple):
    """Which images of a cache are a batch; a few bytes instead of the pixels.

    split: "train" or "val". rows: (B,) long, where they lie in the cache.
    places, flipped: (B, 4) and (B,), see `RandomCrops.draw`; None for images as they are stored.
    """

    split: str
    rows: Tensor
    places: Tensor | None
    flipped: Tensor | None


class ImageCache(Dataset[Draw | int]):
    """Images on a device. As a data set it yields the sampler's draws as they are; `collate` turns
    them into rows, and `fetch` rows into images, once they are on the device.

    Args:
        split: name of the set.
        images: (n, 3, H, W) uint8, the readable ones.
        targets: (n,) long.
        boxes: (n, 4) long, or None.
        sizes: (n, 2) long, on the CPU: width and height of each photograph.
        rows: (N,) long, on the CPU: where each image of the set lies; -1 where it is missing.
        crops: how images are varied, or None.
    """

    def __init__(
        self,
        split: str,
        images: Tensor,
        targets: Tensor,
        boxes: Tensor | None,
        sizes: Tensor,
        rows: Tensor,
        crops: RandomCrops | None,
    ) -> None:
        self.split = split
        self.images = images
        self.targets = targets
        self.boxes = boxes
        self.sizes = sizes
        self.rows = rows
        self.crops = crops

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Draw | int:
        return draw

    def collate(self, draws: Sequence[Draw | int]) -> CachedBatch:
        """The rows of a batch without its unreadable images, and crops from the first seed."""
        draws = [draw for draw in draws if draw != NOTHING]
        indices = [draw if isinstance(draw, int) else draw.image for draw in draws]
        rows = self.rows[indices]
        rows = rows[rows >= 0]
        if self.crops is None:
            return CachedBatch(self.split, rows, None, None)
        seed = 0 if isinstance(draws[0], int) else draws[0].seed or 0
        return CachedBatch(self.split, rows, *self.crops.draw(self.sizes[rows], seed))

    def fetch(self, batch: CachedBatch) -> RawBatch:
        """The images of a batch that is on the cache's device."""
        images = self.images[batch.rows]
        if self.crops is not None and batch.places is not None and batch.flipped is not None:
            images = self.crops.cut(images, batch.places, batch.flipped)
        boxes = None if self.boxes is None else self.boxes[batch.rows]
        return RawBatch(images, self.targets[batch.rows], boxes, [])


class Content(NamedTuple):
    """What a cache is to hold.

    split: "train" or "val". source: the set. indices: of its images.
    transform: an image as drawn -> (3, side, side) uint8, without chance.
    side: in pixels. crops: how training varies what is stored, or None.
    """

    split: str
    source: ImageSource
    indices: Sequence[int]
    transform: Callable[[Any], Tensor]
    side: int
    crops: RandomCrops | None = None

    @property
    def bytes(self) -> int:
        return len(self.indices) * 3 * self.side**2


def fill(
    content: Content,
    device: torch.device,
    *,
    num_workers: int,
    report: Callable[[RawBatch], None],
    desk: Desk | None = None,
    quiet: bool = False,
) -> ImageCache:
    """Decode images into the memory of a device.

    Args:
        content: which, and in which form.
        device: where to keep them.
        num_workers: processes that decode; 0 decodes in this one.
        report: what to do about unreadable images and notes, given a batch of them; may raise.
        desk: where workers say which image they are making.
        quiet: without a progress line.

    Raises:
        ConfigError: too little memory.
        DataError: not one image can be read, or what `report` raises.
    """
    check_memory(content.bytes, device)
    total, side, source = len(content.indices), content.side, content.source
    loader = DataLoader(
        _Numbered(source, content.transform, desk or Desk(num_workers)),
        batch_size=64,
        sampler=content.indices,
        num_workers=num_workers,
        collate_fn=partial(_collate, split=content.split),
    )
    images = torch.empty(total, 3, side, side, dtype=torch.uint8, device=device)
    rows = torch.full((len(source),), -1)
    parts = [(collate([]), torch.zeros(0, 2, dtype=torch.long))]
    count = 0
    title = f"decoding {total} {content.split} images"
    for raw, numbers, sizes in track(loader, title, disable=quiet):
        report(raw)
        if not len(numbers):
            continue
        end = count + len(numbers)
        images[count:end] = raw.images
        rows[numbers] = torch.arange(count, end)
        parts.append((raw._replace(images=numbers), sizes))
        count = end
    if not count and total:  # with few images, some processes have none
        raise DataError(f"not one {content.split} image could be read")
    boxes = [raw.boxes.to(device) for raw, _ in parts if raw.boxes is not None]
    return ImageCache(
        content.split,
        images[:count],
        torch.cat([raw.targets for raw, _ in parts]).to(device),
        torch.cat(boxes) if boxes else None,
        torch.cat([sizes for _, sizes in parts]),
        rows,
        content.crops,
    )


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
    """Bytes that can be allocated on a device; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    about = Path("/proc/meminfo")
    if device.type == "cpu" and about.is_file():
        lines = dict(line.split(":") for line in about.read_text().splitlines())
        return int(lines["MemAvailable"].removesuffix("kB")) * 1024
    return None


class _Numbered(Dataset[tuple[int, tuple[int, int], Sample | Unreadable]]):
    """Each image with its index and the size it has in the file, or why it cannot be read."""

    def __init__(self, source: ImageSource, transform: Callable[[Any], Tensor], desk: Desk) -> None:
        self.source = source
        self.transform = transform
        self.desk = desk

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, tuple[int, int], Sample | Unreadable]:
        with self.desk.making(index):
            try:
                image, target, box = self.source.draw(index)
            except UnreadableImageError as error:
                return index, (0, 0), Unreadable(str(error), Note(index, error.kind))
            size = full_size(image) if isinstance(image, Image.Image) else image.shape[1::-1]
            notes = notes_on(image, index)
            return index, size, Sample(self.transform(image), target, box, None, notes)


def _collate(
    samples: Sequence[tuple[int, tuple[int, int], Sample | Unreadable]], split: str
) -> tuple[RawBatch, Tensor, Tensor]:
    """A batch, the indices of its readable images (b,), and their sizes (b, 2)."""
    readable = [(index, size) for index, size, sample in samples if isinstance(sample, Sample)]
    numbers = torch.tensor([index for index, _ in readable], dtype=torch.long)
    sizes = torch.tensor([size for _, size in readable], dtype=torch.long)
    return collate([sample for *_, sample in samples], split), numbers, sizes

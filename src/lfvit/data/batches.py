"""From images to batches: what worker processes load, and what the model receives."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lfvit.data.augment import WHOLE, Crop, TrainTransform, to_tensor
from lfvit.data.images import UnreadableImageError, read_image, to_rgb
from lfvit.data.sampling import Draw
from lfvit.errors import DataError
from lfvit.utils.seeding import seeded

if TYPE_CHECKING:
    from lfvit.data.label_maps import LabelMapFolder, LabelMaps

Box = tuple[int, int, int, int]

IGNORED = -1
"""Target of a sample that is left out of every sum: without image, or unreadable."""

MAX_NEIGHBORS = 50  # images in a row that may be unreadable in training, as in timm


class ImageDataset(Protocol):
    """Labelled images: the protocol of `data.dataset`.

    The class is called once per split, with ``split="train"`` or ``"val"`` (or ``train=True`` or
    ``False``). Optional: a method ``name(index) -> str``, which names an image in messages and in
    predictions, whatever the machine; ``notes``, sentences for the log; ``held_out`` and
    ``num_total``, see `ImageFolder`.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """(image, target) or (image, target, box).

        image: a path, the bytes of a file, a PIL image, or an array (S, S, 3) uint8 that is used as
        it is. target: class index. box: x0, y0, x1, y1 of the object in pixels, if known.
        """
        ...


def image_name(images: ImageDataset, index: int) -> str:
    """What messages and predictions call an image."""
    name = getattr(images, "name", None)
    return str(name(index)) if callable(name) else f"image {index}"


class Sample(NamedTuple):
    """One image, loaded.

    pixels: (3, S, S) uint8. target: class index, or `IGNORED`. image_index: in the dataset.
    box: of the object in pixels, or None. size: width and height of the image in its file. crop,
    flipped: the part of the image that is shown. label_map, warp: see `LabelMaps`, or None. errors:
    of the images that could not be read, each starting with a path or name.
    """

    pixels: Tensor
    target: int
    image_index: int
    box: Box | None = None
    size: tuple[int, int] = (0, 0)
    crop: Crop = WHOLE
    flipped: bool = False
    label_map: Tensor | None = None
    warp: Tensor | None = None
    errors: tuple[str, ...] = ()


class RawBatch(NamedTuple):
    """A batch as it leaves the workers: images (B, 3, S, S) uint8, targets, indices (B,) long,
    boxes (B, 4) long or None, sizes (B, 2) long, and label maps and errors, see `Sample`.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    boxes: Tensor | None
    sizes: Tensor
    label_maps: "LabelMaps | None" = None
    errors: Sequence[str] = ()


class Batch(NamedTuple):
    """A batch as the model receives it, on its device.

    images: (B, 3, S, S) float, normalized. coarse_images: (B, 3, S/2, S/2), the same downsampled.
    targets: (B,) class indices, `IGNORED` where there is no image; (B, C) probabilities in
    training.
    boxes: (B, 4) x0, y0, x1, y1 in pixels, or None.
    indices: (B,) of the images in their dataset.
    token_mix: where tokens are mixed, see `draw_token_mix`, or None.
    label_maps: dense labels for training, or None.
    """

    images: Tensor
    coarse_images: Tensor
    targets: Tensor
    boxes: Tensor | None = None
    indices: Tensor | None = None
    token_mix: tuple[float, float, float] | None = None
    label_maps: "LabelMaps | None" = None

    @property
    def valid(self) -> Tensor:
        """(B,) bool, False for samples of an evaluation that no sum may count."""
        return self.targets >= 0


class LoadedImages(Dataset[Sample]):
    """Images of a dataset, decoded and transformed, each with its own seed.

    An unreadable image is reported in `Sample.errors`; what to do about it is decided in the main
    process.

    Args:
        images: the dataset.
        transform: PIL image -> (3, S, S) uint8, or a `TrainTransform`.
        image_size: S in pixels.
        exif: see `read_image`.
        neighbors: load the next readable image in place of one that is not.
        label_maps: of the images.

    Raises:
        DataError: with `neighbors`, too many images in a row are unreadable.
    """

    def __init__(
        self,
        images: ImageDataset,
        transform: Any,
        image_size: int,
        *,
        exif: bool = False,
        neighbors: bool = False,
        label_maps: "LabelMapFolder | None" = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.image_size = image_size
        self.exif = exif
        self.neighbors = neighbors
        self.label_maps = label_maps

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw | int) -> Sample:
        # plain indices come from other samplers, such as Lightning's for overfitting
        index, seed = draw if isinstance(draw, Draw) else (draw, 0)
        black = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        if index < 0:
            return Sample(black, IGNORED, index)
        errors: tuple[str, ...] = ()
        while len(errors) < MAX_NEIGHBORS:
            try:
                return self._load(index, seed)._replace(errors=errors)
            except UnreadableImageError as error:
                errors += (str(error),)
            except Exception as error:
                error.add_note(f"while loading {image_name(self.images, index)}")
                raise
            if not self.neighbors:
                return Sample(black, IGNORED, index, errors=errors)
            index = (index + 1) % len(self)
        raise DataError(f"{len(errors)} images in a row are unreadable, the first: {errors[0]}")

    def _load(self, index: int, seed: int | None) -> Sample:
        try:
            image, target, *boxes = self.images[index]
            if isinstance(image, Image.Image):
                image = to_rgb(image)
        except (OSError, Image.DecompressionBombError) as error:  # of a dataset that decodes
            name = image_name(self.images, index)
            raise UnreadableImageError(f"{name}: not readable as an image ({error})") from error
        box = boxes[0] if boxes else None
        if isinstance(image, np.ndarray):
            expected = (self.image_size, self.image_size, 3)
            if image.shape != expected or image.dtype != np.uint8:
                raise ValueError(
                    f"an array of {image.dtype} {image.shape}, not uint8 {expected}; return a PIL "
                    "image to have it cropped and resized"
                )
            return Sample(to_tensor(image), int(target), index, box, image.shape[1::-1])
        if isinstance(image, (str, Path)):
            image = read_image(image, exif=self.exif)
        elif isinstance(image, bytes):
            image = read_image(image, name=image_name(self.images, index), exif=self.exif)
        sample = Sample(torch.empty(0), int(target), index, box, image.size)
        if not isinstance(self.transform, TrainTransform):
            return sample._replace(pixels=self.transform(image))
        label_map = None if self.label_maps is None else self.label_maps.read(index)
        sample = sample._replace(label_map=label_map)
        with seeded(seed or 0, devices=False):
            if label_map is not None and self.transform.augment.auto_augment is not None:
                pixels, crop, warp = self.transform.whole_first(image)
                return sample._replace(pixels=pixels, crop=crop, warp=warp)
            pixels, crop, flipped = self.transform(image)
        return sample._replace(pixels=pixels, crop=crop, flipped=flipped)


def collate(samples: Sequence[Sample]) -> RawBatch:
    """Stack samples."""
    pixels, targets, indices, boxes, sizes, crops, flipped, label_maps, warps, errors = zip(
        *samples, strict=True
    )
    maps = None
    if all(label_map is not None for label_map in label_maps):
        from lfvit.data.label_maps import LabelMaps

        warp = None if warps[0] is None else torch.stack(warps)
        maps = LabelMaps(torch.stack(label_maps), torch.tensor(crops), torch.tensor(flipped), warp)
    return RawBatch(
        torch.stack(pixels),
        torch.tensor(targets),
        torch.tensor(indices),
        torch.tensor([box or (0, 0, 0, 0) for box in boxes]) if any(boxes) else None,
        torch.tensor(sizes),
        maps,
        [error for messages in errors for error in messages],
    )

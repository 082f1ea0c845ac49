"""Dense labels from files: what a strong model saw where, for token labelling (Jiang et al. 2021).

A map covers the whole image. It is cut exactly where the image was cropped, and flipped with it.
"""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import Compose, RandomHorizontalFlip
from torchvision.transforms.functional import hflip, resized_crop

from lfvit.data.images import UnreadableImageError
from lfvit.errors import DataError

Place = tuple[float, float, float, float]
"""A crop: left, top, right, bottom as shares of the image's width and height."""


class LabelMap(NamedTuple):
    """One image's map, and the part of the image that is shown.

    top: (2, k, H, W), the k best classes in every cell: their scores (before softmax), then their
    indices. place: the crop. flipped: whether left and right are swapped after cropping.
    """

    top: Tensor
    place: Place
    flipped: bool


class LabelMaps(NamedTuple):
    """The maps of a batch: top (B, 2, k, H, W), place (B, 4), flipped (B,) bool; see `LabelMap`."""

    top: Tensor
    place: Tensor
    flipped: Tensor

    @classmethod
    def of(cls, maps: Sequence[LabelMap]) -> "LabelMaps | None":
        """Stacked; None for no maps."""
        if not maps:
            return None
        tops, places, flips = zip(*maps, strict=True)
        return cls(torch.stack(tops), torch.tensor(places), torch.tensor(flips))

    def patches(self, grid: int, num_classes: int) -> Tensor:
        """Probabilities of every patch of what is shown: (B, G*G, C).

        RoIAlign of the scores over the crop, classes that are not among the k best counting 0, and
        a softmax over all classes, as the released maps are meant.
        """
        scores, classes = self.top.float().unbind(1)  # (B, k, H, W) each
        B, _, H, W = scores.shape
        dense = scores.new_zeros(B, num_classes, H, W).scatter_(1, classes.long(), scores)
        boxes = self.place.to(dense) * dense.new_tensor([W, H, W, H])
        cut = roi_align(dense, list(boxes[:, None].unbind(0)), grid, aligned=True)  # (B, C, G, G)
        cut = torch.where(self.flipped[:, None, None, None], cut.flip(3), cut)
        return cut.flatten(2).transpose(1, 2).softmax(dim=2)


@dataclass(frozen=True)
class LabelMapFolder:
    """One .pt file per training image, at the image's place below the folder of classes:
    CLASS/photo.jpg has CLASS/photo.pt.

    A file holds one tensor (2, k, H, W), see `LabelMap`, of any floating-point kind; all of them
    have the same size. These are the files that the authors of token labelling published for
    ImageNet (k = 5, 18 x 18 cells).
    """

    paths: list[Path]
    num_classes: int
    shape: torch.Size

    @classmethod
    def open(
        cls, folder: str | Path, images: list[Path], base: Path, num_classes: int
    ) -> "LabelMapFolder":
        """Find the map of every image, and read the first.

        Args:
            folder: of the maps.
            images: paths of the training images.
            base: the folder of classes that they lie in.

        Raises:
            DataError: no such folder, an image without a map, or a first map that is none.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.label_maps={folder}: no such folder")
        paths = [folder / path.relative_to(base).with_suffix(".pt") for path in images]
        there = {
            os.path.join(at, name)
            for at, _, names in os.walk(folder, followlinks=True)
            for name in names
        }
        missing = [path for path in paths if str(path) not in there]
        if missing:
            raise DataError(
                f"data.label_maps={folder}: {len(missing)} of {len(paths)} training images have no "
                f"map; the first one missing is {missing[0]}. Put it there, remove the image, or "
                "set data.label_maps=null"
            )
        maps = cls(paths, num_classes, _read(paths[0]).shape)
        maps.read(0)
        return maps

    def read(self, index: int) -> Tensor:
        """The map of an image: (2, k, H, W) float32.

        Raises:
            LabelMapError: naming the file.
        """
        path = self.paths[index]
        top = _read(path)
        if top.shape != self.shape:
            raise LabelMapError(
                f"{path}: a label map of {_size(top.shape)}, not {_size(self.shape)}"
            )
        classes = top[1]
        if not torch.equal(classes, classes.round()):
            raise LabelMapError(f"{path}: a label map with class indices that are not whole")
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise LabelMapError(
                f"{path}: names classes {classes.min():g} to {classes.max():g}, but the data has "
                f"{self.num_classes}"
            )
        return top


class LabelMapError(UnreadableImageError):
    """A file that is no label map of this data; its image cannot be used either."""

    kind = "bad label map"


def _read(path: Path) -> Tensor:
    try:
        top = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise LabelMapError(
            f"{path}: not readable as a label map ({type(error).__name__})"
        ) from error
    if not isinstance(top, Tensor) or top.ndim != 4 or len(top) != 2 or not top.numel():
        what = _size(top.shape) if isinstance(top, Tensor) else type(top).__name__
        raise LabelMapError(
            f"{path}: not a label map ({what}); expected a tensor of 2 x k x H x W, scores and "
            "class indices"
        )
    top = top.float()
    if not top.isfinite().all():
        raise LabelMapError(f"{path}: a label map with values that are not finite")
    return top


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


class FollowedTransform:
    """A training transform of timm's that also says which part of the image it shows.

    Draws the same random numbers as the transform itself, so the pixels are the same with and
    without label maps. What automatic augmentation may shear or shift by a few pixels after the
    crop is not followed.

    Args:
        transform: random resized crop, perhaps a horizontal flip, then anything else.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        steps = list(getattr(transform, "transforms", []))
        if not steps or not isinstance(steps[0], RandomResizedCropAndInterpolation):
            raise TypeError(
                f"label maps cannot follow {transform}, which does not start by cropping"
            )
        self.crop = steps.pop(0)
        self.flip = steps.pop(0) if isinstance(steps[0], RandomHorizontalFlip) else None
        self.rest = Compose(steps)

    def __call__(self, image: Image.Image) -> tuple[Any, Place, bool]:
        """Pixels (3, S, S), the crop, and whether it is flipped."""
        crop, (W, H) = self.crop, image.size
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        interpolation = crop.interpolation
        if isinstance(interpolation, (tuple, list)):
            interpolation = random.choice(interpolation)
        image = resized_crop(image, top, left, height, width, crop.size, interpolation)
        flipped = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        image = hflip(image) if flipped else image
        place = left / W, top / H, (left + width) / W, (top + height) / H
        return self.rest(image), place, flipped

"""Training and evaluation transforms, and mixing of whole batches, by timm."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import Compose, RandomHorizontalFlip
from torchvision.transforms.functional import hflip, resized_crop

from lfvit.data.images import center_box, center_crop
from lfvit.data.settings import AugmentSettings, Preprocessing

Crop = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image's width and height."""

WHOLE: Crop = (0.0, 0.0, 1.0, 1.0)


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""Operations of RandAugment that move what is in the image."""


class Moves:
    """Takes an image's place in timm's geometric operations, to learn their matrices.

    matrix: (3, 3), from a point of the result, in pixels, to where it was in the image.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.matrix = np.eye(3)

    def transform(self, size: Any, method: Any, data: Any, **_: Any) -> "Moves":
        self.matrix = self.matrix @ [data[:3], data[3:], (0, 0, 1)]
        return self

    def rotate(self, degrees: float, **_: Any) -> "Moves":
        x, y = self.size[0] / 2, self.size[1] / 2
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return self.transform(None, None, (c, -s, x - c * x + s * y, s, c, y - s * x - c * y))

    def normalized(self) -> Tensor:
        """The matrix as torch's `affine_grid` takes it: (2, 3), of coordinates from -1 to 1."""
        x, y = self.size[0] / 2, self.size[1] / 2
        pixels = np.array([(x, 0, x), (0, y, y), (0, 0, 1)])
        return torch.from_numpy(np.linalg.inv(pixels) @ self.matrix @ pixels)[:2].float()


class TrainTransform:
    """timm's training transform, which also says which part of the image its pixels show.

    Draws the same random numbers as timm's and makes the same pixels. What automatic augmentation
    may shear or shift by a few pixels after the crop is not part of the answer; `whole_first` has
    it.

    Args:
        augment: settings.
        image_size: S in pixels.
    """

    def __init__(self, augment: AugmentSettings, image_size: int) -> None:
        self.augment = augment
        transform: Any = create_transform(
            image_size,
            is_training=True,
            scale=augment.crop_scale,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            use_prefetcher=True,  # timm's word for: leave normalising to the device
        )
        self.crop, *steps = transform.transforms
        assert isinstance(self.crop, RandomResizedCropAndInterpolation)
        self.flip = steps.pop(0) if isinstance(steps[0], RandomHorizontalFlip) else None
        self.rest = Compose(steps)

    def __call__(self, image: Image.Image) -> tuple[Tensor, Crop, bool]:
        """Pixels (3, S, S) uint8, the crop, and whether it is flipped."""
        (top, left, height, width), interpolation, flipped = self._draw(image.size)
        pixels = resized_crop(image, top, left, height, width, self.crop.size, interpolation)
        pixels = self.rest(hflip(pixels) if flipped else pixels)
        return torch.as_tensor(pixels), _shares(image.size, top, left, height, width), flipped

    def whole_first(self, image: Image.Image) -> tuple[Tensor, Crop, Tensor]:
        """Flip and RandAugment on the whole image, then the crop, as token labelling is released.

        Returns:
            Pixels (3, S, S) uint8, the crop, and where its points were in the image, see
            `Moves.normalized`.
        """
        augment, *rest = self.rest.transforms
        self.moves = Moves(image.size)
        for op in augment.ops:
            if op.name in GEOMETRIC and not isinstance(op.aug_fn, partial):
                op.aug_fn = partial(self._move, op.aug_fn)
        (top, left, height, width), interpolation, flipped = self._draw(image.size)
        if flipped:
            image = hflip(image)
            self.moves.transform(None, None, (-1, 0, image.size[0], 0, 1, 0))
        pixels = augment(image)
        pixels = resized_crop(pixels, top, left, height, width, self.crop.size, interpolation)
        crop = _shares(image.size, top, left, height, width)
        return torch.as_tensor(Compose(rest)(pixels)), crop, self.moves.normalized()

    def _move(self, operation: Any, image: Image.Image, *amounts: Any, **options: Any) -> Any:
        operation(self.moves, *amounts, **options)
        return operation(image, *amounts, **options)

    def draw(self, size: tuple[int, int]) -> tuple[Crop, bool]:
        """The crop and flip that the same random state gives an image of this width and height."""
        box, _, flipped = self._draw(size)
        return _shares(size, *box), flipped

    def _draw(self, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], Any, bool]:
        image = torch.empty(3, size[1], size[0], device="meta")
        box = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        interpolation = self.crop.interpolation
        if isinstance(interpolation, (tuple, list)):
            interpolation = random.choice(interpolation)
        return box, interpolation, self.flip is not None and bool(torch.rand(1) < self.flip.p)


def _shares(size: tuple[int, int], top: int, left: int, height: int, width: int) -> Crop:
    W, H = size
    return left / W, top / H, (left + width) / W, (top + height) / H


def eval_transform(
    preprocessing: Preprocessing, image_size: int
) -> Callable[[Image.Image], Tensor]:
    """PIL image -> (3, S, S) uint8: shorter side to S / crop_pct, center crop."""
    crop = preprocessing.model_dump(exclude={"mean", "std"})
    return partial(_center, size=image_size, **crop)


def _center(
    image: Image.Image, size: int, crop_pct: float, interpolation: str, crop_mode: str
) -> Tensor:
    """The center crop, to one grey level (in one of a million pixels, two) that of timm.

    PyTorch's filters for 8 bits are several times faster than Pillow's, but it has only two, and
    resizes the whole image: too much of one that is far longer than wide.
    """
    (width, height), (left, top) = center_box(image.size, size, crop_pct, crop_mode)
    if interpolation not in ("bilinear", "bicubic") or max(width, height) > 4 * min(width, height):
        return to_tensor(center_crop(image, size, crop_pct, interpolation, crop_mode))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), channels last
    resized = interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]
    return resized[:, top : top + size, left : left + size]


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """PIL image or (H, W, 3) uint8 array -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()


def mix_batch(
    augment: AugmentSettings, images: Tensor, targets: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Random erasing, then mixup or cutmix, and label smoothing.

    Args:
        augment: settings.
        images: (B, 3, S, S), changed in place; B even with mixup or cutmix.
        targets: (B,) class indices.
        num_classes: C.

    Returns:
        The images and (B, C) probabilities.
    """
    if augment.erasing:
        images = RandomErasing(augment.erasing, mode="pixel", device=images.device)(images)
    if augment.mixup or augment.cutmix:
        mixup = Mixup(
            augment.mixup,
            augment.cutmix,
            prob=augment.mix_prob,
            switch_prob=augment.mix_switch,
            label_smoothing=augment.label_smoothing,
            num_classes=num_classes,
        )
        return mixup(images, targets)
    return images, mixup_target(targets, num_classes, 1.0, augment.label_smoothing)


def draw_token_mix(alpha: float) -> tuple[float, float, float]:
    """Where tokens are mixed in a batch (mix-token, LV-ViT), on whatever grid the model has.

    Args:
        alpha: of the Beta distribution of the share that is kept, above 0.

    Returns:
        The share kept, and the box's centre, see `lfvit.models.lv_vit.TokenMix.from_draw`.
    """
    return np.random.beta(alpha, alpha), np.random.rand(), np.random.rand()


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) in 0..255 -> float with mean 0 and standard deviation 1 of each channel."""
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels.device).view(3, 1, 1) * 255
    return (pixels - mean).div_(std)  # in place: one large allocation instead of three

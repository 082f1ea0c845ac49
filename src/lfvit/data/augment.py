"""How images are varied in training and cut to size in evaluation, with timm's transforms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.nn.functional import interpolate

from lfvit.data.batches import as_pixels
from lfvit.data.images import FILTERS, centre_crop, full_size, middle
from lfvit.utils.validation import check_choice, check_names, check_range, check_whole

INTERPOLATIONS = (*FILTERS, "random")


@dataclass(frozen=True)
class Augment:
    """How training images are varied; timm's and DeiT's names. Evaluation uses crop_pct alone.

    crop_scale: share of the area a random crop covers. hflip: probability. color_jitter: strength,
    without effect beside auto_augment. auto_augment: timm's policy string. erasing: probability of
    random erasing. mixup, cutmix: alpha of their Beta distribution, 0 is off; mix_prob: share of
    the batches mixed; mix_switch: share of these that is cut. mix_token: alpha of mix-token, in
    every batch, for backbones with an auxiliary head. label_smoothing: of the targets. repeats:
    repeated augmentation. crop_pct: evaluation resizes to S / crop_pct, then crops.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str | None = None
    interpolation: str = "bicubic"
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    mix_token: float = 0.0
    label_smoothing: float = 0.0
    repeats: int = 1
    crop_pct: float = 0.875

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> "Augment":
        """From a plain mapping.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        settings = dict(settings or {})
        names = [field.name for field in fields(cls)]
        check_names("augment", settings, names)
        augment = cls(**settings)
        for name in ("hflip", "erasing", "mix_prob", "mix_switch"):
            check_range(f"augment.{name}", getattr(augment, name), 0, 1)
        for name in ("mixup", "cutmix", "mix_token", "color_jitter"):
            check_range(f"augment.{name}", getattr(augment, name), 0)
        check_range("augment.label_smoothing", augment.label_smoothing, 0, 1, below=True)
        check_choice("augment.interpolation", augment.interpolation, INTERPOLATIONS)
        check_range("augment.crop_pct", augment.crop_pct, 0, 1, above=True)
        check_whole("augment.repeats", augment.repeats, 1)
        return augment

    def token_box(self) -> tuple[float, float, float, float] | None:
        """Where tokens are mixed in this batch: top, left, bottom, right as shares of the side.

        Before it is cut off at the border, the box covers a share of 1 - Beta(alpha, alpha) of the
        image, around a point anywhere in it. None without mix_token.
        """
        if not self.mix_token:
            return None
        half = 0.5 * (1 - np.random.beta(self.mix_token, self.mix_token)) ** 0.5
        row, column = np.random.rand(2)
        top, left, bottom, right = np.clip(
            [row - half, column - half, row + half, column + half], 0, 1
        ).tolist()
        return top, left, bottom, right

    def train_transform(self, image_size: int) -> Callable[[Any], Any]:
        """PIL image -> (3, S, S) uint8, randomly varied."""
        return create_transform(
            image_size,
            is_training=True,
            scale=(self.crop_scale[0], self.crop_scale[1]),
            hflip=self.hflip,
            color_jitter=self.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=self.auto_augment,
            interpolation=self.interpolation,
            use_prefetcher=True,  # timm's word for: leave normalising to the device
        )

    @property
    def eval_interpolation(self) -> str:
        """Evaluation draws nothing: "random" in training is bicubic there."""
        return "bicubic" if self.interpolation == "random" else self.interpolation

    def eval_transform(self, image_size: int) -> Callable[[Any], Any]:
        """PIL image -> (3, S, S) uint8: shorter side to S / crop_pct, centre crop."""
        return partial(
            _middle,
            size=image_size,
            crop_pct=self.crop_pct,
            interpolation=self.eval_interpolation,
        )


def _middle(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> Tensor:
    """The centre crop, to one grey level (in one of a million pixels, two) that of timm.

    PyTorch's filters for 8 bits are several times faster than Pillow's, but it has only two, and
    cannot leave out the part of a pixel that a reduced decoding adds.
    """
    if interpolation not in ("bilinear", "bicubic") or full_size(image) != image.size:
        return as_pixels(centre_crop(image, size, crop_pct, interpolation))
    (width, height), (left, top) = middle(image.size, size, crop_pct)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), channels last
    resized = interpolate(pixels[None], (height, width), mode=interpolation, antialias=True)[0]
    return resized[:, top : top + size, left : left + size]

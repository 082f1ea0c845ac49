"""Random resized crops and flips of a whole batch, on the batch's device."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from lfvit.data.augment import Augment
from lfvit.data.batches import as_pixels
from lfvit.data.images import resized_side, squeeze
from lfvit.errors import ConfigError
from lfvit.utils.validation import check_choice

RATIO = (3 / 4, 4 / 3)  # least and greatest width / height of a crop, and
ATTEMPTS = 10  # how often one is drawn that may not fit, both as in timm


@dataclass(frozen=True)
class RandomCrops:
    """What timm's RandomResizedCropAndInterpolation and RandomHorizontalFlip do, many at a time.

    size: S of the crops in pixels. scale: least and greatest share of the area. hflip: probability.
    interpolation: "bilinear" or "bicubic". stored_side: S_0 of the square images cropped from.
    """

    size: int
    scale: tuple[float, float]
    hflip: float
    interpolation: str
    stored_side: int

    @classmethod
    def of(cls, augment: Augment, image_size: int) -> "RandomCrops":
        """The crops of an augmentation that consists of crops and flips.

        Raises:
            ConfigError: it does more, or resizes in a way that is not known here.
        """
        for name, off in (("auto_augment", "null"), ("color_jitter", "0")):
            if value := getattr(augment, name):
                raise ConfigError(
                    f"data.cache=device with augment.{name}={value}: images from the cache are "
                    f"cropped and flipped, not recoloured; set augment.{name}={off}, or "
                    "data.cache=null"
                )
        check_choice(
            "data.cache=device: augment.interpolation", augment.interpolation, tuple(KERNELS)
        )
        return cls(
            size=image_size,
            scale=(augment.crop_scale[0], augment.crop_scale[1]),
            hflip=augment.hflip,
            interpolation=augment.interpolation,
            stored_side=resized_side(image_size, augment.crop_pct),
        )

    def store(self, image: Image.Image) -> Tensor:
        """A photograph -> (3, S_0, S_0) uint8, all of it, whatever its proportions."""
        side = self.stored_side
        return as_pixels(squeeze(image, (side, side), self.interpolation))

    def draw(self, sizes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Where to crop B photographs and which to flip, from one seed, on the CPU.

        Args:
            sizes: (B, 2) long, width and height of each photograph. Crops have the proportions of
                `RATIO` in these pixels, whatever shape the image is stored in.
            seed: the same crops come from the same seed, on every device.

        Returns:
            (B, 4) left, top, right, bottom as shares of width and height, and (B,) bool.
        """
        B, generator = len(sizes), torch.Generator().manual_seed(seed)
        draws = torch.rand(4, B, ATTEMPTS, generator=generator, dtype=torch.float64)
        flipped = torch.rand(B, generator=generator) < self.hflip
        W, H = sizes.double()[:, :, None].unbind(1)  # (B, 1) each
        area = W * H * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0])
        low, high = (math.log(ratio) for ratio in RATIO)
        ratio = torch.exp(low + (high - low) * draws[1])
        width = (area * ratio).sqrt().round().clamp(min=1)  # (B, ATTEMPTS)
        height = (area / ratio).sqrt().round().clamp(min=1)
        left = (draws[2] * (W - width + 1)).floor()
        top = (draws[3] * (H - height + 1)).floor()
        fits = (width <= W) & (height <= H)
        first = fits.int().argmax(dim=1, keepdim=True)
        boxes = torch.stack([left, top, left + width, top + height], 2)  # (B, ATTEMPTS, 4)
        chosen = boxes.take_along_dim(first[:, :, None], 1)[:, 0]
        # where none fits, the middle: as much of it as the proportions allow
        width = torch.minimum(W, (H * RATIO[1]).round())
        height = torch.minimum(H, (W / RATIO[0]).round())
        left, top = ((W - width) / 2).floor(), ((H - height) / 2).floor()
        middle = torch.cat([left, top, left + width, top + height], 1)  # (B, 4)
        places = torch.where(fits.any(1, keepdim=True), chosen, middle) / torch.cat([W, H, W, H], 1)
        return places.float(), flipped

    def cut(self, images: Tensor, places: Tensor, flipped: Tensor) -> Tensor:
        """Crop, resize and flip: (B, 3, S_0, S_0) uint8 -> (B, 3, S, S) uint8.

        Resizing is Pillow's, with anti-aliasing: each output row and column is a weighted sum of
        the rows and columns within the crop, as one matrix product over the batch per direction.
        """
        left, top, right, bottom = places.unbind(1)
        down = self._weights(top, bottom, images.shape[2])  # (B, 1, S, S_0)
        across = self._weights(left, right, images.shape[3])
        across = torch.where(flipped[:, None, None, None], across.flip(2), across)
        return (down @ images.float() @ across.mT).round().clamp(0, 255).byte()

    def _weights(self, low: Tensor, high: Tensor, length: int) -> Tensor:
        """(B, 1, S, length): what each of `length` pixels adds to the S between two places."""
        start, end = (share[:, None, None, None] * length for share in (low, high))
        step = (end - start) / self.size
        new = torch.arange(self.size, device=low.device)[:, None]
        old = torch.arange(length, device=low.device) + 0.5
        distance = (old - start - (new + 0.5) * step) / step.clamp(min=1)
        weights = KERNELS[self.interpolation](distance.abs())
        # only pixels within the crop; the shares are rounded, by far less than a hundredth of one
        weights = weights * ((old + 0.49 > start) & (old - 0.49 < end))
        return weights / weights.sum(3, keepdim=True)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as in Pillow."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}

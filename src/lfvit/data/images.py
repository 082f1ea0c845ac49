"""Reading image files of any kind as 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image

from lfvit.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)


class UnreadableImageError(DataError):
    """An image file that cannot be decoded; the message starts with its path."""


def read_image(path: str | Path) -> Image.Image:
    """Decode a file to 8-bit RGB.

    Grayscale is repeated over the channels, CMYK and palettes are converted, transparency is laid
    on white, 16 bits per channel are scaled to 8 (the high byte), floating point must lie in 0..1
    or 0..255. Of an animation, the first frame.

    Raises:
        UnreadableImageError: missing, empty, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except Exception as error:  # decoders raise many kinds, down to struct.error and IndexError
        reason = str(error).replace(str(path), "").strip(" :'\"") or type(error).__name__
        raise UnreadableImageError(f"{path}: not readable as an image ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB, see `read_image`."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these, not scale them
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Grayscale of more than 8 bits, integer or float -> (H, W) uint8.

    Raises:
        ValueError: values outside the ranges such files use.
    """
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        scale = 1 / 256
    elif image.mode == "F" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 256
    if not (low >= 0 and high * scale < 256):  # also refuses NaN
        raise ValueError(f"{image.mode} values from {low:g} to {high:g} are no known brightness")
    return (values * scale).astype(np.uint8)

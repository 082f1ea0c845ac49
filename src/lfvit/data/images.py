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
    on white, 16 bits per channel are scaled to 8 (the high byte). Of an animation, the first frame.

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
    if image.mode.startswith("I"):  # 16-bit grayscale, which PIL would clip rather than scale
        high = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")

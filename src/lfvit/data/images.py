"""Decode image files of any kind to 8-bit RGB, and crop them for evaluation. Needs no PyTorch."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lfvit.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000")
"""Decoders tried, whatever the suffix says. Pillow has others, one of which runs Ghostscript."""

FILTERS = {  # of Pillow, by timm's names
    name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "lanczos")
}

FULL_SIZE = "full_size"
"""Key of `Image.info`: width and height in the file, of an image decoded at a reduced size."""


class UnreadableImageError(DataError):
    """An image cannot be decoded; the message starts with its path or name."""


def read_image(
    file: str | Path | bytes,
    *,
    name: str | None = None,
    exif: bool = False,
    shorter_side: int | None = None,
) -> Image.Image:
    """Decode a file to 8-bit RGB.

    Grayscale is repeated over the channels, CMYK and palettes are converted, transparency is
    composited on white, 16 bits per channel are scaled to 8 (the high byte), floating point must
    lie in 0..1 or 0..255. Of an animation or several pages, the first frame. ICC profiles are not
    applied, as in timm and torchvision. More pixels than Pillow's limit, 178,956,970, are refused.

    Args:
        file: path, or the bytes of the file.
        name: of the image in errors; the path where there is one.
        exif: rotate and mirror as the EXIF orientation says. The loaders of timm and torchvision,
            behind every published figure, do not.
        shorter_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves its shorter
            side at least this many pixels; None decodes it whole.

    Raises:
        UnreadableImageError: missing, empty, truncated, too large or not an image.
    """
    try:
        source = BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=FORMATS) as image:
            if shorter_side is not None and image.format == "JPEG":
                image.info[FULL_SIZE] = image.size
                image.draft(None, (shorter_side, shorter_side))
            image.load()
            return to_rgb(_transpose(image) if exif else image)
    except Exception as error:  # decoders raise many kinds, down to struct.error and IndexError
        reason = str(error) or type(error).__name__
        for path in (repr(str(file)), str(file), repr(source)):
            reason = reason.replace(path, "").strip(" :")
        called = name or (str(file) if isinstance(file, (str, Path)) else "image")
        raise UnreadableImageError(f"{called}: not readable as an image ({reason})") from error


def _transpose(image: Image.Image) -> Image.Image:
    """Upright, as the EXIF orientation says; as it is where the EXIF block is broken."""
    try:
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        upright = ImageOps.exif_transpose(image)
    except Exception:
        return image
    if sideways and FULL_SIZE in image.info:
        upright.info[FULL_SIZE] = image.info[FULL_SIZE][::-1]
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB, see `read_image`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these, not scale them
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.has_transparency_data:
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


def full_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file, also of an image that was decoded at a reduced size."""
    return image.info.get(FULL_SIZE, image.size)


def center_box(
    full: tuple[int, int], size: int, crop_pct: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height that an image is resized to, and where its crop starts: left, top."""
    side, shorter = math.floor(size / crop_pct), min(full)
    width, height = (side * length // shorter for length in full)
    return (width, height), (round((width - size) / 2), round((height - size) / 2))


def center_crop(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> Image.Image:
    """Shorter side to floor(size / crop_pct), then the size x size pixels in the middle.

    Only what the crop keeps is resized. The pixels are those of timm's and torchvision's Resize and
    CenterCrop to one grey level, in one of a million pixels to two: Pillow rounds the crop's
    position to single precision.

    Args:
        image: RGB, possibly decoded at a reduced size.
        size: S in pixels.
        crop_pct: in (0, 1].
        interpolation: a name of `FILTERS`.
    """
    resized, (left, top) = center_box(full_size(image), size, crop_pct)
    x, y = (a / b for a, b in zip(_extent(image), resized, strict=True))
    box = left * x, top * y, (left + size) * x, (top + size) * y
    return image.resize((size, size), FILTERS[interpolation], box=box)


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """All of an image, possibly decoded at a reduced size, in this width and height."""
    return image.resize(size, FILTERS[interpolation], box=(0, 0, *_extent(image)))


def _extent(image: Image.Image) -> tuple[float, float]:
    """Width and height of an image in its pixels, which need not be whole.

    A decoder that halves 1025 columns makes 513, the last of which is half empty.
    """
    width, height = full_size(image)
    reduction = round(width / image.width)
    return width / reduction, height / reduction

"""Find image files, decode any kind to 8-bit RGB, and crop for evaluation. Needs no PyTorch."""

import logging
import math
import os
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

from lfvit.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".jp2", ".j2k", ".jpx"),
    *(".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "JPEG2000"]
"""Decoders tried, whatever the suffix says. Pillow has others, one of which runs Ghostscript."""
FORMATS += ["AVIF"] if "avif" in features.modules else []  # since Pillow 11.3

FILTERS = {  # of Pillow, by timm's names
    name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "lanczos")
}


class UnreadableImageError(DataError):
    """An image cannot be decoded; the message starts with its path or name."""


def printable(path: str | Path) -> str:
    """A path as text; bytes of a file name that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_image(path: str | Path) -> bool:
    """By its suffix; a file without one by its first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix:
        return suffix in SUFFIXES
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # decoders raise many kinds, down to struct.error and IndexError
        return False


def read_image(
    file: str | Path | bytes, *, name: str | None = None, exif: bool = False
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

    Raises:
        UnreadableImageError: missing, empty, truncated, too large or not an image.
    """
    try:
        source = BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            return to_rgb(_transpose(image) if exif else image)
    except Exception as error:  # decoders raise many kinds, down to struct.error and IndexError
        reason = str(error) or type(error).__name__
        for path in (repr(str(file)), str(file), repr(source)):
            reason = reason.replace(path, "").strip(" :")
        called = name or (printable(file) if isinstance(file, (str, Path)) else "image")
        raise UnreadableImageError(f"{called}: not readable as an image ({reason})") from error


def _transpose(image: Image.Image) -> Image.Image:
    """Upright, as the EXIF orientation says; as it is where the EXIF block is broken."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


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


def center_box(
    size: tuple[int, int], crop: int, crop_pct: float, crop_mode: str = "center"
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height that an image is resized to, and where its crop starts: left, top.

    Args:
        size: width and height of the image.
        crop: S in pixels.
        crop_pct: the shorter side is resized to floor(S / crop_pct).
        crop_mode: "squash" resizes both sides to that.
    """
    side, shorter = math.floor(crop / crop_pct), min(size)
    squash = crop_mode == "squash"
    width, height = (side if squash else side * length // shorter for length in size)
    return (width, height), (round((width - crop) / 2), round((height - crop) / 2))


def center_crop(
    image: Image.Image, size: int, crop_pct: float, interpolation: str, crop_mode: str = "center"
) -> Image.Image:
    """Shorter side to floor(size / crop_pct), then the size x size pixels in the middle.

    Only what the crop keeps is resized. The pixels are those of timm's and torchvision's Resize and
    CenterCrop to one grey level, in one of a million pixels to two: Pillow rounds the crop's
    position to single precision.

    Args:
        image: RGB.
        size: S in pixels.
        crop_pct: in (0, 1].
        interpolation: a name of `FILTERS`.
        crop_mode: see `center_box`.
    """
    resized, (left, top) = center_box(image.size, size, crop_pct, crop_mode)
    x, y = (a / b for a, b in zip(image.size, resized, strict=True))
    box = left * x, top * y, (left + size) * x, (top + size) * y
    return image.resize((size, size), FILTERS[interpolation], box=box)


def images_of(path: str | Path, setting: str = "image") -> list[Path]:
    """One image file, or all images below a folder, sorted; `setting` is where it was named.

    Raises:
        DataError: neither, or a folder without images.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{setting}={printable(path)}: no such file or folder")
    images, others = images_below(path)
    if not images:
        raise DataError(f"{setting}={printable(path)}: holds no images{in_words(others)}")
    if others:
        log.warning("passed over %d other files%s", others.total(), in_words(others))
    return images


def images_below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Image files in a folder and its subfolders, sorted, and how many other files there are of
    every suffix; every folder once, though links make loops. Hidden files are left out.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if is_image(path):
                images.append(path)
            else:
                others[path.suffix.lower() or "without suffix"] += 1
        subfolders = {os.path.realpath(Path(parent) / name): name for name in sorted(folders)}
        folders[:] = [name for path, name in subfolders.items() if path not in seen]
        seen |= subfolders.keys()
    return sorted(images), others


def in_words(others: Counter[str]) -> str:
    """Suffixes and numbers of files that are no images."""
    counts = ", ".join(f"{number} {printable(suffix)}" for suffix, number in others.most_common(4))
    return f" ({counts})" if counts else ""


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

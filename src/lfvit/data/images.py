"""Reading image files of any kind as 8-bit RGB, and cutting them to size for evaluation."""

import math
import os
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lfvit.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
)

FILTERS = {  # of Pillow, by timm's names
    name: Image.Resampling[name.upper()]
    for name in ("bicubic", "bilinear", "lanczos", "nearest", "box", "hamming")
}
FULL_SIZE = "full_size"
"""Key of `Image.info`: width and height in the file, of an image decoded at a reduced size."""


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000")
"""Decoders that are tried, whatever the suffix says. Pillow has others, one of which starts
Ghostscript."""

NOTES = "notes"
"""Key of `Image.info`: by which rules of `read_image` an image was read, see `note_kinds`."""

GREY, PALETTE, CMYK, ALPHA = "grey", "palette", "CMYK", "alpha channel"
DEEP, FRAMES = "more than 8 bits", "several frames"
TURNED, NOT_TURNED = "turned as EXIF says", "EXIF rotation ignored"

TURNS = {  # by the EXIF tag "orientation"
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[5], TURNS[6], TURNS[7], TURNS[8]}  # width becomes height


class UnreadableImageError(DataError):
    """An image that cannot be decoded; the message starts with its path or name.

    kind: in a word or two, for counts: missing, no permission, read error, empty, not an image,
    truncated, too large, metadata too long, damaged.
    """

    kind = "damaged"

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or self.kind


@dataclass(frozen=True)
class Decoding:
    """How files become pixels, where there is a choice.

    shorter_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves the shorter side so
    many pixels. The decoder leaves out high frequencies, which takes less time than to decode them
    and resize them away. None decodes all of it.
    exif: turn and mirror the pixels as the camera's note says. timm's and torchvision's loaders do
    not, and so did no published figure.
    """

    shorter_side: int | None = None
    exif: bool = False


WHOLE = Decoding()


def read_image(path: str | Path, decoding: Decoding = WHOLE) -> Image.Image:
    """Decode a file to 8-bit RGB.

    Grayscale is repeated over the channels, CMYK and palettes are converted, transparency is laid
    on white, 16 bits per channel are scaled to 8 (the high byte), floating point must lie in 0..1
    or 0..255. Of an animation or several pages, the first frame. ICC profiles are not applied, as
    in timm and torchvision. More pixels than Pillow's limit, 178,956,970, are refused.

    Raises:
        UnreadableImageError: missing, empty, truncated, too large or not an image.
    """
    return _read(path, str(path), decoding)


def decode(data: bytes, name: str, decoding: Decoding = WHOLE) -> Image.Image:
    """`read_image` of the bytes of a file; `name` is what errors call it."""
    return _read(BytesIO(data), name, decoding)


def _read(file: str | Path | BytesIO, name: str, decoding: Decoding) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as image:
            if decoding.shorter_side is not None and image.format == "JPEG":
                image.info[FULL_SIZE] = image.size
                image.draft(None, (decoding.shorter_side, decoding.shorter_side))
            notes = note_kinds(image)
            image.load()
            pixels = to_rgb(image)
            turn = TURNS.get(_orientation(image))
            if turn is not None:
                notes.append(TURNED if decoding.exif else NOT_TURNED)
                pixels = _turn(pixels, turn) if decoding.exif else pixels
            pixels.info[NOTES] = notes
            return pixels
    except Exception as error:  # decoders raise many kinds, down to struct.error and IndexError
        kind = _kind(error, file)
        called = repr(file) if isinstance(file, BytesIO) else str(file)
        reason = str(error).replace(called, "").strip(" :'\"") or type(error).__name__
        reason = "no bytes" if kind == "empty" else reason
        raise UnreadableImageError(f"{name}: not readable as an image ({reason})", kind) from error


def _kind(error: Exception, file: str | Path | BytesIO) -> str:
    """See `UnreadableImageError`."""
    text = str(error).lower()
    match error:
        case FileNotFoundError():
            return "missing"
        case PermissionError():
            return "no permission"
        case UnidentifiedImageError():
            size = len(file.getvalue()) if isinstance(file, BytesIO) else os.stat(file).st_size
            return "not an image" if size else "empty"
        case Image.DecompressionBombError() | MemoryError():
            return "too large"
        case OSError(errno=number) if number is not None:
            return "read error"
    if "max_text" in text or "decompressed data too large" in text:  # in Pillow's own words
        return "metadata too long"
    cut = isinstance(error, EOFError) or re.search(r"truncated|not enough|end of", text)
    return "truncated" if cut else "damaged"


def note_kinds(image: Image.Image) -> list[str]:
    """By which rules an opened image is about to be read; plain RGB by none."""
    mode = image.mode
    kinds = {
        GREY: mode in ("1", "L", "LA", "La"),
        PALETTE: mode in ("P", "PA"),
        CMYK: mode == "CMYK",
        ALPHA: _has_alpha(image),
        DEEP: mode.startswith("I") or mode == "F",
        FRAMES: _has_several_frames(image),
    }
    return [kind for kind, found in kinds.items() if found]


def _has_several_frames(image: Image.Image) -> bool:
    try:  # looks for the second frame, which may be broken while the first is not
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    """The EXIF tag of a loaded image; 1, upright, of a TIFF: Pillow has turned it already."""
    try:  # a broken note is no broken picture
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _turn(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    turned = image.transpose(turn)
    if FULL_SIZE in image.info and turn in SIDEWAYS:
        turned.info[FULL_SIZE] = image.info[FULL_SIZE][::-1]
    return turned


def full_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file, also of an image that was decoded at a reduced size."""
    return image.info.get(FULL_SIZE, image.size)


def resized_side(size: int, crop_pct: float) -> int:
    """What the shorter side is resized to before `size` pixels are cut from it."""
    return math.floor(size / crop_pct)


def middle(
    full: tuple[int, int], size: int, crop_pct: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height that an image is resized to, and where its crop starts: left, top."""
    side, shorter = resized_side(size, crop_pct), min(full)
    width, height = (side * length // shorter for length in full)
    return (width, height), (round((width - size) / 2), round((height - size) / 2))


def centre_crop(image: Image.Image, size: int, crop_pct: float, interpolation: str) -> Image.Image:
    """Shorter side to floor(size / crop_pct), then the size x size pixels in the middle.

    Only what the crop keeps is resized. The pixels are those of timm's and torchvision's Resize and
    CenterCrop to one grey level, in one of a million pixels to two: Pillow rounds the place of the
    crop to single precision.

    Args:
        image: RGB, perhaps decoded at a reduced size.
        size: S in pixels.
        crop_pct: in (0, 1].
        interpolation: a name of `FILTERS`.
    """
    resized, (left, top) = middle(full_size(image), size, crop_pct)
    x, y = (a / b for a, b in zip(_extent(image), resized, strict=True))
    if interpolation in ("nearest", "box"):  # these jump where the place is rounded
        whole = squeeze(image, resized, interpolation)
        return whole.crop((left, top, left + size, top + size))
    box = left * x, top * y, (left + size) * x, (top + size) * y
    return image.resize((size, size), FILTERS[interpolation], box=box)


def squeeze(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """All of an image, perhaps decoded at a reduced size, in this width and height."""
    return image.resize(size, FILTERS[interpolation], box=(0, 0, *_extent(image)))


def _extent(image: Image.Image) -> tuple[float, float]:
    """Width and height of an image in its own pixels, which need not be whole.

    A decoder that halves 1025 columns makes 513, the last of which is half empty.
    """
    width, height = full_size(image)
    reduction = round(width / image.width)
    return width / reduction, height / reduction


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB, see `read_image`."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":  # PIL would clip these, not scale them
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if _has_alpha(image):
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

"""Images of every kind become the right 8-bit RGB, and broken ones an error with their name."""

import io
import os
import resource

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from timm.data import create_transform

from conftest import photograph
from lfvit.data.augment import TrainTransform, eval_transform, to_tensor
from lfvit.data.images import FILTERS, UnreadableImageError, center_crop, read_image
from lfvit.data.settings import AugmentSettings, Preprocessing


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode="L"):
    values = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_modes_that_hold_a_gray_gradient(mode):
    image = read_image(encoded(gradient(mode)))
    assert image.mode == "RGB"
    expected = np.asarray(gradient(mode).convert("L")).astype(int)
    assert np.abs(np.asarray(image) - expected[..., None]).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    image = read_image(encoded(Image.fromarray(values), kind))
    assert np.array_equal(np.asarray(image)[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("high", "dtype"), [(255, np.int32), (65535, np.int32), (1, np.float32), (255, np.float32)]
)
def test_deep_grayscale_is_never_black(high, dtype):
    image = Image.fromarray(np.linspace(0, high, 64).reshape(8, 8).astype(dtype))
    pixels = np.asarray(read_image(encoded(image, "TIFF")))[..., 0].flatten()
    assert np.abs(pixels.astype(int) - np.linspace(0, 255, 64)).max() <= 1.01


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 1e6], [0.0, np.nan]])
def test_values_of_unknown_brightness_are_refused(values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(UnreadableImageError, match="no known brightness"):
        read_image(encoded(image, "TIFF"), name="x")


def test_transparency_is_composited_on_white():
    assert np.asarray(read_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))))).min() == 255
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    assert np.asarray(read_image(encoded(image, transparency=(1, 2, 3)))).min() == 255


def test_cmyk_and_of_an_animation_the_first_frame():
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    image = read_image(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() < 6
    frames = [photograph((24, 24), hue, hue) for hue in range(3)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_image(data), frames[0])


# --- EXIF ---------------------------------------------------------------------------------------


def rotated(orientation, size=(60, 40), kind="JPEG", **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(photograph(size, 0, 1), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_applied_on_demand_only(orientation, kind):
    data = rotated(orientation, kind=kind)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(read_image(data), stored)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(read_image(data, exif=True), expected)


def test_a_broken_exif_block_is_no_broken_picture():
    data = encoded(photograph((20, 20), 0, 1), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(data, exif=True), read_image(data))


# --- what cannot be read ------------------------------------------------------------------------


def noise(kind):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    return encoded(Image.fromarray(values), kind)


def long_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    return encoded(photograph((9, 9), 0, 1), pnginfo=text)


def bomb():
    """A header that promises 400 million pixels, which nobody wrote."""
    data = bytearray(encoded(Image.new("1", (1, 1)), "BMP"))
    data[18:26] = (20000).to_bytes(4, "little") * 2
    return bytes(data)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
REFUSED = {
    "empty": (lambda: b"", "cannot identify"),
    "text": (lambda: b"<html>404 Not Found</html>", "cannot identify"),
    "a program for Ghostscript": (lambda: POSTSCRIPT, "cannot identify"),
    "a truncated JPEG": (lambda: noise("JPEG")[:2000], "truncated"),
    "a decompression bomb": (bomb, "400000000 pixels"),
    "long metadata": (long_text, "MAX_TEXT_CHUNK|Decompressed Data Too Large"),  # by version
    **{f"half a {k}": (lambda k=k: noise(k)[:6000], r"\w") for k in ("PNG", "TIFF", "GIF", "BMP")},
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("on_disk", [True, False])
def test_what_cannot_be_read_is_refused_by_name(kind, on_disk, tmp_path):
    make, reason = REFUSED[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(make())
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path) if on_disk else read_image(make(), name=str(path))
    assert str(caught.value).startswith(f"{path}: not readable as an image (")
    assert str(caught.value).count("photo.jpg") == 1


def test_a_file_that_is_missing_or_locked(tmp_path):
    path = tmp_path / "x.jpg"
    with pytest.raises(UnreadableImageError, match=rf"^{path}: .*No such file or directory"):
        read_image(path)
    if os.geteuid():  # root may read everything
        path.write_bytes(noise("JPEG"))
        path.chmod(0)
        with pytest.raises(UnreadableImageError, match="Permission denied"):
            read_image(path)


# --- crops --------------------------------------------------------------------------------------

SIZES = [(200, 150), (91, 301), (300, 61), (1300, 200), (41, 57), (73, 73)]


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.875, "center"), (1.0, "center"), (0.95, "squash")]
)
def test_the_center_crop_is_that_of_timm(interpolation, crop_pct, crop_mode):
    """Shrunk and enlarged, of smooth images and noise; with PyTorch, and without in the runtime."""
    rng = np.random.default_rng(0)
    crop = {"crop_pct": crop_pct, "interpolation": interpolation, "crop_mode": crop_mode}
    for size in (32, 112):
        reference = create_transform(size, **crop, use_prefetcher=True)
        for width, height in SIZES:
            detail = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            for image in (photograph((width, height), 0, 1), detail):
                expected = reference(image).int()
                for pixels in (
                    eval_transform(Preprocessing(**crop), size)(image),
                    to_tensor(center_crop(image, size, **crop)),
                ):
                    difference = (pixels.int() - expected).abs()
                    assert difference.max() <= 2
                    assert (difference > 1).double().mean() < 1e-3  # where two roundings meet


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (9_000, 40)])
def test_memory_for_a_long_image_is_that_of_its_crop(size):
    """Resized as a whole, the first would take 10 GB."""
    image = Image.new("RGB", size, (9, 90, 200))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pixels in (
        eval_transform(Preprocessing(), 224)(image),
        TrainTransform(AugmentSettings(), 224)(image)[0],
    ):
        assert pixels.shape == (3, 224, 224)
        assert pixels.flatten(1).float().mean(1).tolist() == pytest.approx([9, 90, 200], abs=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB

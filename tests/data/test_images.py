"""Images of every mode become the right 8-bit RGB, and broken ones an error with their path."""

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from conftest import photograph
from lfvit.data.augment import Augment
from lfvit.data.batches import as_pixels
from lfvit.data.images import (
    FILTERS,
    Decoding,
    UnreadableImageError,
    centre_crop,
    full_size,
    read_image,
    squeeze,
)


def gradient(mode="L"):
    values = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_modes_that_hold_a_gray_gradient(tmp_path, mode):
    image = read_image(save(gradient(mode), tmp_path / "x.png"))
    assert image.mode == "RGB"
    expected = np.asarray(gradient(mode).convert("L"))
    found = np.asarray(image)
    for channel in range(3):
        assert np.abs(found[..., channel].astype(int) - expected).max() <= 2


def test_cmyk(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    image = read_image(save(red.convert("CMYK"), tmp_path / "x.jpg", quality=95))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() < 6


def test_16_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    for suffix in (".png", ".tif"):
        image = read_image(save(Image.fromarray(values), tmp_path / f"x{suffix}"))
        assert np.array_equal(np.asarray(image)[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(0, 255, 64), np.int32),
        (np.linspace(0, 65535, 64), np.int32),
        (np.linspace(0, 1, 64), np.float32),
        (np.linspace(0, 255, 64), np.float32),
    ],
)
def test_deep_grayscale_is_never_black(tmp_path, values, kind):
    image = Image.fromarray(values.reshape(8, 8).astype(kind))
    found = np.asarray(read_image(save(image, tmp_path / "x.tif")))[..., 0].flatten()
    assert np.abs(found.astype(int) - np.linspace(0, 255, 64)).max() <= 1.01


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 1e6], [0.0, np.nan]])
def test_values_of_unknown_brightness_are_refused(tmp_path, values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(UnreadableImageError, match="no known brightness"):
        read_image(save(image, tmp_path / "x.tif"))


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(read_image(save(image, tmp_path / "x.png"))).min() == 255


@pytest.mark.parametrize("keep", [0, 20, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_files_are_named(tmp_path, suffix, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"x{suffix}")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableImageError, match=f"^{path}: not readable as an image"):
        read_image(path)


def test_text_and_missing_files_are_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    for name in ("notes.jpg", "nowhere.jpg"):
        with pytest.raises(UnreadableImageError, match=name):
            read_image(tmp_path / name)


SIZES = [(200, 150), (150, 200), (91, 301), (300, 61), (41, 57), (64, 64), (73, 73), (513, 385)]


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_the_middle_is_that_of_timm(interpolation, crop_pct):
    """Shrunk and enlarged, of smooth images and noise; with PyTorch, and without in the runtime."""
    rng = np.random.default_rng(0)
    augment = Augment(interpolation=interpolation, crop_pct=crop_pct)
    for size in (32, 64, 112):
        whole = create_transform(
            size, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True
        )
        for width, height in SIZES:
            noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for image in (photograph((width, height), 0, 1), Image.fromarray(noise)):
                expected = whole(image).int()
                for found in (
                    augment.eval_transform(size)(image),
                    as_pixels(centre_crop(image, size, crop_pct, interpolation)),
                ):
                    difference = (found.int() - expected).abs()
                    assert difference.max() <= 2
                    assert (difference > 1).double().mean() < 1e-3  # where two roundings meet
                    if interpolation in ("nearest", "box"):
                        assert difference.max() == 0


def detailed(width, height):
    """Noise at all scales, less of it at the finer ones, as in a photograph."""
    rng = np.random.default_rng(3)
    image = np.zeros((height, width, 3))
    for cells, share in ((4, 0.5), (16, 0.25), (64, 0.15), (256, 0.1)):
        small = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC)) * share
    return Image.fromarray(image.astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_decoded_at_a_reduced_size_shows_the_same(mode, tmp_path):
    path = save(detailed(513, 401).convert(mode), tmp_path / "x.jpg", quality=95, subsampling=0)
    full, reduced = read_image(path), read_image(path, Decoding(96))
    assert reduced.size == (129, 101)  # a quarter, rounded up
    assert full_size(reduced) == full_size(full) == (513, 401)
    for cut in (
        lambda image: centre_crop(image, 42, 0.875, "bicubic"),
        lambda image: centre_crop(image, 42, 0.875, "box"),
        lambda image: squeeze(image, (48, 48), "bicubic"),
    ):
        expected, found = (np.asarray(cut(image)).astype(int) for image in (full, reduced))
        assert found.shape == expected.shape
        assert 0 < np.abs(found - expected).mean() < 2.5
        assert np.abs(np.roll(found, 1, axis=1) - expected).mean() > 4  # in the same place


def test_small_images_and_other_formats_are_decoded_whole(tmp_path):
    image = detailed(300, 200)
    for path, side in ((tmp_path / "x.jpg", 101), (tmp_path / "x.png", 20)):
        save(image, path)
        whole, asked = np.asarray(read_image(path)), np.asarray(read_image(path, Decoding(side)))
        np.testing.assert_array_equal(asked, whole)

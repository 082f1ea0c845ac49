"""Images of every mode become the right 8-bit RGB, and broken ones an error with their path."""

import numpy as np
import pytest
from PIL import Image

from lfvit.data.images import UnreadableImageError, read_image


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

"""One rule of decoding for all sources: what is refused, by which name, and what is noted."""

import io
import os

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from conftest import photograph
from lfvit.data.images import (
    ALPHA,
    CMYK,
    DEEP,
    FRAMES,
    GREY,
    NOT_TURNED,
    NOTES,
    PALETTE,
    TURNED,
    Decoding,
    UnreadableImageError,
    centre_crop,
    decode,
    full_size,
    read_image,
)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation, size=(60, 40), kind="JPEG", **options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(photograph(size, 0, 1), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_noted_and_applied_on_demand_only(orientation, kind):
    data = rotated(orientation, kind=kind)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    plain, turned = decode(data, "x"), decode(data, "x", Decoding(exif=True))
    assert np.array_equal(plain, stored)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(turned, expected)
    assert plain.info[NOTES] == ([] if orientation == 1 else [NOT_TURNED])
    assert turned.info[NOTES] == ([] if orientation == 1 else [TURNED])


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_turned_photograph_decoded_at_a_reduced_size_shows_the_same(orientation):
    data = rotated(orientation, size=(513, 401), quality=95)
    whole = decode(data, "x", Decoding(exif=True))
    small = decode(data, "x", Decoding(shorter_side=96, exif=True))
    assert full_size(small) == whole.size
    assert max(small.size) < max(whole.size) / 3
    found, expected = (
        np.asarray(centre_crop(image, 42, 0.875, "bicubic")).astype(int) for image in (small, whole)
    )
    assert np.abs(found - expected).mean() < 2


def test_a_broken_exif_block_is_no_broken_picture():
    data = encoded(photograph((20, 20), 0, 1), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, "x", Decoding(exif=True)).info[NOTES] == []


def animation():
    frames = [photograph((24, 24), hue, hue) for hue in range(3)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize(
    ("data", "notes"),
    [
        (lambda: encoded(photograph((9, 9), 0, 1)), []),
        (lambda: encoded(photograph((9, 9), 0, 1).convert("L")), [GREY]),
        (lambda: encoded(photograph((9, 9), 0, 1).convert("P")), [PALETTE]),
        (lambda: encoded(photograph((9, 9), 0, 1).convert("LA")), [GREY, ALPHA]),
        (lambda: encoded(photograph((9, 9), 0, 1).convert("CMYK"), "JPEG"), [CMYK]),
        (lambda: encoded(Image.fromarray(np.full((9, 9), 999, np.uint16))), [DEEP]),
        (animation, [FRAMES]),
    ],
)
def test_special_kinds_are_noted(data, notes):
    image = decode(data(), "x")
    assert image.mode == "RGB"
    assert image.info[NOTES] == notes


def test_of_an_animation_the_first_frame():
    assert np.array_equal(decode(animation(), "x"), photograph((24, 24), 0, 0))


def noise(kind):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    return encoded(Image.fromarray(values), kind)


def long_text():
    about = PngImagePlugin.PngInfo()
    about.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    return encoded(photograph((9, 9), 0, 1), pnginfo=about)


def bomb():
    """A header that promises 400 million pixels, which nobody wrote."""
    data = bytearray(encoded(Image.new("1", (1, 1)), "BMP"))
    data[18:26] = (20000).to_bytes(4, "little") * 2
    return bytes(data)


REFUSED = {
    "empty": (lambda: b"", "no bytes"),
    "not an image": (lambda: b"<html>404 Not Found</html>", "cannot identify"),
    "truncated": (lambda: noise("JPEG")[:2000], "truncated"),
    "too large": (bomb, "400000000 pixels"),
    "metadata too long": (
        long_text,
        "MAX_TEXT_CHUNK|Decompressed Data Too Large",
    ),  # newer Pillow, older Pillow
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("on_disk", [True, False])
def test_what_cannot_be_read_is_refused_by_name_and_kind(kind, on_disk, tmp_path):
    make, reason = REFUSED[kind]
    data, path = make(), tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        read_image(path) if on_disk else decode(data, str(path))
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{path}: not readable as an image (")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "PPM"])
def test_half_a_file_is_truncated_whatever_its_format(kind):
    data = noise(kind)
    with pytest.raises(UnreadableImageError) as caught:
        decode(data[: len(data) // 2], "x")
    assert caught.value.kind == "truncated"


def test_a_file_that_has_gone_or_is_locked(tmp_path):
    with pytest.raises(UnreadableImageError) as caught:
        read_image(tmp_path / "x.jpg")
    assert caught.value.kind == "missing"
    if os.geteuid() == 0:
        return  # root may read everything
    path = tmp_path / "locked.jpg"
    path.write_bytes(noise("JPEG"))
    path.chmod(0)
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert caught.value.kind == "no permission"


def test_programs_in_disguise_are_not_run():
    """Pillow would hand PostScript to Ghostscript."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(UnreadableImageError) as caught:
        decode(script, "photo.jpg")
    assert caught.value.kind == "not an image"

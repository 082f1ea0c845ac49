"""Damaged image files: a picture, or the one stated error."""

import io

import numpy as np
import pytest
import torch
from fuzzing import edited, edits, fuzz
from hypothesis import strategies as st
from PIL import Image

from conftest import photograph
from lfvit.data import ImageDataModule, ImageFolder
from lfvit.data.sampling import Draw

S = 32


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _corpus() -> dict[str, bytes]:
    picture = photograph((40, 56), 1, 0)
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256)
    floats = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = [picture.rotate(90 * i) for i in range(3)]
    return {
        "baseline.jpg": _encoded(picture, "JPEG", exif=rotated),
        "progressive.jpg": _encoded(picture, "JPEG", progressive=True, icc_profile=b"x" * 200),
        "cmyk.jpg": _encoded(picture.convert("CMYK"), "JPEG"),
        "rgb.png": _encoded(picture, "PNG", exif=rotated),
        "alpha.png": _encoded(picture.convert("RGBA"), "PNG"),
        "palette.png": _encoded(picture.convert("P"), "PNG", transparency=3),
        "deep.png": _encoded(deep, "PNG"),
        "lossy.webp": _encoded(picture, "WEBP", exif=rotated),
        "animated.webp": _encoded(picture, "WEBP", save_all=True, append_images=frames),
        "animated.gif": _encoded(picture, "GIF", save_all=True, append_images=frames),
        "plain.tif": _encoded(picture, "TIFF"),
        "deflated.tif": _encoded(picture, "TIFF", compression="tiff_deflate"),
        "floats.tiff": _encoded(floats, "TIFF"),
        "plain.bmp": _encoded(picture, "BMP"),
        "indexed.bmp": _encoded(picture.convert("P"), "BMP"),
        "plain.ppm": _encoded(picture, "PPM"),
        "gray.pgm": _encoded(picture.convert("L"), "PPM"),
    }


CORPUS = _corpus()


@pytest.fixture(scope="module", params=[False, True], ids=["", "exif"])
def data(request, tmp_path_factory):
    """The training and the validation images of a folder, and for every kind of file its path."""
    root = tmp_path_factory.mktemp("images")
    paths = {}
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for file, content in CORPUS.items():
                paths[split, file] = root / split / name / file
                paths[split, file].write_bytes(content)
    module = ImageDataModule(
        ImageFolder, root=str(root), image_size=S, batch_size=2, exif=request.param
    )
    module.setup()
    return {"train": module.train_dataset(), "val": module.val_dataset()}, paths


@pytest.mark.filterwarnings("ignore")  # of decoders, about what is wrong with the file
@fuzz(
    40,
    split=st.sampled_from(["train", "val"]),
    name=st.sampled_from(sorted(CORPUS)),
    content=st.one_of(st.none(), st.sampled_from(sorted(CORPUS))),
    changes=edits(),
)
def test_a_damaged_image_is_a_picture_or_unreadable(data, split, name, content, changes):
    datasets, paths = data
    path = paths[split, name]
    path.write_bytes(edited(CORPUS[content or name], changes))  # perhaps under another suffix
    index = sorted(paths[key] for key in paths if key[0] == split).index(path)
    index += len(datasets[split]) - len(CORPUS)
    try:
        sample = datasets[split][Draw(index, 0)]
    finally:
        path.write_bytes(CORPUS[name])
    assert sample.pixels.shape == (3, S, S)
    assert sample.pixels.dtype == torch.uint8
    assert sample.image_index == index
    if sample.errors:
        assert sample.target == -1
        assert sample.errors[0].startswith(f"{path}: ")
        assert len(sample.errors[0]) < 1000
    else:
        assert sample.target == 1

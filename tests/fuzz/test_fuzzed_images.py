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


def corpus() -> dict[str, bytes]:
    """File name -> content, for every kind of file and mode that is read."""
    picture = photograph((40, 56), 1, 0)
    gray = np.asarray(picture.convert("L"))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = {"save_all": True, "append_images": [picture.rotate(90 * i) for i in range(3)]}
    kinds = {
        "baseline.jpg": (picture, {"exif": rotated}),
        "progressive.jpg": (picture, {"progressive": True, "icc_profile": b"x" * 200}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "rgb.png": (picture, {"exif": rotated}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "palette.png": (picture.convert("P"), {"transparency": 3}),
        "deep.png": (Image.fromarray(gray.astype(np.uint16) * 256), {}),
        "lossy.webp": (picture, {"exif": rotated}),
        "animated.webp": (picture, frames),
        "animated.gif": (picture, frames),
        "deflated.tif": (picture, {"compression": "tiff_deflate"}),
        "floats.tiff": (Image.fromarray(gray.astype(np.float32) / 255), {}),
        "plain.bmp": (picture, {}),
        "plain.ppm": (picture, {}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()["." + name.split(".")[1]], **options)
        files[name] = file.getvalue()
    return files


CORPUS = corpus()


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
    assert sample.target == (-1 if sample.errors else 1)
    if sample.errors:
        assert sample.errors[0].startswith(f"{path}: ")
        assert len(sample.errors[0]) < 1000

"""Photographs in clutter: the same everywhere, each in its box and nowhere else."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import run_script
from lfvit.data import ClutteredFolder
from lfvit.data.images import UnreadableImageError
from lfvit.data.settings import check_data
from lfvit.errors import ConfigError
from lfvit.utils.atomic_io import read_json

SIZE = 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One class of red photographs, one of blue ones, so that pixels say where they come from."""
    root = tmp_path_factory.mktemp("plain")
    for name, color in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (root / name).mkdir()
        for i in range(6):
            Image.new("RGB", (40 + i, 50), color).save(root / name / f"{i}.png")
    return root


def test_an_image_depends_on_its_split_and_index_alone(folder):
    first, second = (ClutteredFolder("val", root=folder, image_size=SIZE) for _ in range(2))
    second[1]
    assert np.array_equal(first[0][0], second[0][0])
    assert first[0][1:] == second[0][1:]
    train = ClutteredFolder("train", root=folder, image_size=SIZE)
    assert train[0][2] != first[0][2]


def test_the_photograph_lies_in_its_box(folder):
    images = ClutteredFolder("train", root=folder, image_size=SIZE)
    boxes = set()
    for index in range(len(images)):
        pixels, target, (x0, y0, x1, y1) = images[index]
        assert pixels.shape == (SIZE, SIZE, 3)
        assert pixels.dtype == np.uint8
        assert 0 <= x0 < x1 <= SIZE
        assert 0 <= y0 < y1 <= SIZE
        assert x1 - x0 == y1 - y0
        channel = {"red": 0, "blue": 2}[images.classes[target]]
        assert (pixels[y0:y1, x0:x1, channel] > 150).all()
        outside = np.ones((SIZE, SIZE), dtype=bool)
        outside[y0:y1, x0:x1] = False
        shown = pixels[outside].max(axis=0)
        assert (shown[[0, 2]] > 150).any()  # clutter, and no black rest where tiles do not fit
        assert (pixels.max(axis=2) > 150).all()
        boxes.add((x0, y0, x1, y1))
    assert len(boxes) > len(images) / 2


def test_an_lf_vit_trains_on_it_and_says_how_often_it_looks_there(photographs, tmp_path):
    settings = (
        *("trainer=cpu", "logger=none", "data.num_workers=0", "backbone=vit_micro"),
        *("method=lf_vit", "image_size=112", "trainer.max_epochs=1", "data.batch_size=4"),
    )
    run = tmp_path / "run"
    root = f"data.root={photographs}"
    assert run_script("train", "data=clutter", root, *settings, f"hydra.run.dir={run}") == 0
    found = tmp_path / "found"
    assert run_script("evaluate", f"ckpt_path={run}", f"hydra.run.dir={found}") == 0
    evaluation = read_json(found / "evaluate.json")
    assert 0 <= evaluation["localisation"]["region"]["covered"] <= 1
    names = pd.read_parquet(found / "predictions.parquet")["image"]
    assert names.str.startswith("clutter 112 ").all()


@pytest.mark.parametrize(("setting", "value"), [("exif", True), ("label_maps", "maps")])
def test_settings_without_effect_are_refused(folder, setting, value):
    group = {"dataset": {"_target_": "lfvit.data.ClutteredFolder"}, "root": str(folder)}
    with pytest.raises(ConfigError, match=rf"data\.{setting}={value!r}"):
        check_data({**group, "image_size": SIZE, setting: value})


def test_a_photograph_that_cannot_be_read_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.jpg").write_bytes(b"no image")
    images = ClutteredFolder("train", root=str(tmp_path), image_size=SIZE)
    with pytest.raises(UnreadableImageError, match="jpg: not readable as an image"):
        images[0]

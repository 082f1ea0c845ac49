"""Timing of the input pipeline: that all pipelines make the same batches, and what the rows say."""

import json

import pytest
import torch

from conftest import write_photographs
from lfvit.data import FolderDataModule
from lfvit.data.folders import ImageFolder
from lfvit.errors import DataError
from lfvit.measure.loading import Pipelines, time_loading

CPU = torch.device("cpu")


def data(root, **settings):
    settings = {"image_size": 32, "batch_size": 4, "val_fraction": 0.3, **settings}
    return FolderDataModule(root=str(root), **settings)


def test_a_row_for_every_stage_and_pipeline(photographs):
    augment = {"auto_augment": "rand-m9-mstd0.5-inc1", "interpolation": "random"}
    threads = torch.get_num_threads()
    rows = time_loading(data(photographs, augment=augment), device=CPU, images=5, repeats=3)
    assert torch.get_num_threads() == threads
    assert [row["model"] for row in rows] == [
        "evaluation: torchvision",
        "evaluation: lfvit",
        "evaluation: lfvit, reduced decode",
        "evaluation: lfvit, cache",
        "training: torchvision",
        "training: lfvit",
        "training: lfvit, cache",
    ]
    for row in rows:
        base = next(r for r in rows if r["model"] == row["compared_with"])
        assert row["task"] == "loading"
        assert row["repeats"] == 3
        assert row["measured_speedup"] == pytest.approx(
            row["images_per_second"] / base["images_per_second"]
        )
        low, high = row["images_per_second_slowest"], row["images_per_second_fastest"]
        assert 0 < low <= row["images_per_second"] <= high
        settings = json.loads(row["settings"])
        assert settings["images"] == 5
        assert settings["interpolation"] == "bicubic"
        assert settings["median_megapixels"] > 0


def test_training_with_a_filter_that_the_cache_lacks_has_no_cached_row(photographs):
    rows = time_loading(
        data(photographs, augment={"interpolation": "lanczos"}), device=CPU, images=2, repeats=1
    )
    assert [row["model"] for row in rows][-1] == "training: lfvit"


def test_all_pipelines_evaluate_the_same_images(tmp_path):
    """What is timed is the same work: the batches agree to two grey levels."""
    root = write_photographs(tmp_path / "x", per_class=2)
    module = data(root, val_fraction=0.5)
    module.setup()
    paths = module.train_images.paths + module.val_images.paths
    files = ImageFolder(module.train_images.classes, paths, [0] * len(paths))
    pipelines = Pipelines(files, root, module.augment, 32, 4, CPU)
    found = {name: torch.cat([*run()]) for name, run in pipelines.evaluation().items()}
    for name, images in found.items():
        assert images.shape == (6, 3, 32, 32), name
        grey_levels = (images - found["torchvision"]).abs() * 255 * 0.225
        assert grey_levels.max() < 2.2, name
    for name, run in pipelines.training().items():
        assert [len(batch) for batch in run()] == [4, 2], name


def test_files_that_cannot_be_read_are_an_error(tmp_path):
    root = write_photographs(tmp_path / "x", per_class=2)
    next(root.rglob("*.jpg")).write_bytes(b"no image")
    with pytest.raises(DataError, match="not readable as an image"):
        time_loading(data(root, val_fraction=0.5), device=CPU, repeats=1)

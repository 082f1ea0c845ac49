"""Training on shards, and evaluating the checkpoint on its own data and on the same elsewhere."""

import json
import os
import shutil
import subprocess
import sys

import datasets
import pytest
import torch
from PIL import ExifTags, Image

from conftest import ROOT, photograph, write_photographs
from lfvit.commands.evaluate import evaluate
from lfvit.commands.export import describe
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.data.shards import main
from lfvit.errors import ConfigError, DataError
from lfvit.runs.setup import load_trained
from lfvit.runtime import Runtime

datasets.disable_progress_bars()
TRAIN = (
    "backbone.embed_dim=24",
    "backbone.num_heads=2",
    "callbacks.progress=null",
    "data.batch_size=6",
    "data.exif=true",
    "data.num_workers=0",
    "data=shards",
    "image_size=64",
    "method=vit",
    "trainer.max_epochs=1",
    "lr_scheduler.warmup_epochs=0",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of photographs and its shards."""
    base = tmp_path_factory.mktemp("sources")
    write_photographs(base / "folder" / "train")
    write_photographs(base / "folder" / "val", per_class=4)
    main([str(base / "folder"), str(base / "shards"), "--shard-size", "10"])
    return base


@pytest.fixture(scope="module")
def trained(base, composed):
    """A run on the shards, started in their folder: with a relative root."""
    here = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        os.chdir(base)
        try:
            train(composed("train", *TRAIN, "data.root=shards", f"run_dir={base / 'run'}"))
        finally:
            os.chdir(here)
    return base / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def run(composed, trained, base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run_evaluate(*overrides):
        cfg = composed(
            "evaluate",
            f"ckpt_path={trained}",
            "trainer.accelerator=cpu",
            "verify_macs=false",
            f"run_dir={tmp_path / 'evaluate'}",
            *overrides,
        )
        return evaluate(cfg)

    return run_evaluate


def test_a_checkpoint_finds_its_shards_and_answers_alike_on_other_sources(run, base, tmp_path):
    own = run()
    assert own["data"] == "ShardDataModule"
    assert own["unreadable_images"] == 0
    folder = run("data=imagefolder", f"data.root={base / 'folder'}", "data.exif=true")
    saved = tmp_path / "set"
    rows = datasets.load_dataset("imagefolder", data_dir=str(base / "folder" / "val"))["train"]
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(saved))
    hub = run("data=huggingface", f"data.path={saved}", "data.exif=true")
    for other, kind in ((folder, "FolderDataModule"), (hub, "HuggingFaceDataModule")):
        assert other["data"] == kind
        assert other["first"] == own["first"]


def test_settings_of_other_kinds_of_data_are_refused(run, base):
    with pytest.raises(ConfigError, match="trained on ShardDataModule, which has no such setting"):
        run("data.path=somewhere")
    with pytest.raises(DataError, match=r"data\.train=train-\*\.tar: no such shards"):
        run(f"data.root={base / 'folder'}")


def test_pictures_are_turned_as_in_training(trained, composed, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = photograph((120, 80), 1, 1)
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    found = []
    for name in ("a.png", "b.png"):
        cfg = composed("predict", f"ckpt_path={trained}", "accelerator=cpu", "pictures=false")
        cfg.image, cfg.run_dir = str(tmp_path / name), str(tmp_path / "out")
        found.append(predict(cfg)[0]["top"])
    assert found[0] == found[1]
    exported = Runtime(describe(load_trained(trained)), [])
    assert (exported.prepare(tmp_path / "a.png") == exported.prepare(tmp_path / "b.png")).all()
    exported.card["exif"] = False
    assert (exported.prepare(tmp_path / "a.png") != exported.prepare(tmp_path / "b.png")).any()


def test_nothing_but_known_data_modules_is_built(trained):
    record = torch.load(trained, weights_only=True)["lfvit"]
    assert record["data"]["_target_"] == "lfvit.data.ShardDataModule"
    assert os.path.isabs(record["data"]["root"])


@pytest.mark.chaos
def test_two_processes_count_together(base, tmp_path):
    """Each meets other unreadable images; the log and metrics.json tell of all of them."""
    folder = tmp_path / "folder"
    shutil.copytree(base / "folder", folder)
    for name, data in (("apple", b""), ("pear", b"<html>"), ("plum", b"\xff\xd8\xff")):
        (folder / "train" / name / "00.jpg").write_bytes(data)
    main([str(folder), str(tmp_path / "shards"), "--shard-size", "7"])
    settings = [
        *(f"data.root={tmp_path / 'shards'}", f"hydra.run.dir={tmp_path / 'run'}"),
        *("data.on_error=skip", "trainer.devices=2", "data.batch_size=4"),
    ]
    small = [one for one in TRAIN if not one.startswith("data.batch_size")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *small, *settings],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["unreadable_images"] == 3
    assert "24 train images, at the end: 3 unreadable: " in done.stdout + done.stderr

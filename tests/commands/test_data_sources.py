"""Command lines over every kind of dataset: training, and evaluating the checkpoint elsewhere."""

import json
import shutil

import datasets
import pytest
from PIL import ExifTags, Image

from conftest import ROOT, photograph, run_python, write_photographs, write_shards
from lfvit.commands.evaluate import evaluate
from lfvit.commands.export import describe
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.errors import ConfigError, DataError
from lfvit.runs.configs import open_groups
from lfvit.runs.models import load_trained
from lfvit.runtime import Runtime

datasets.disable_progress_bars()
FAST = (
    "backbone.embed_dim=24",
    "backbone.num_heads=2",
    "callbacks.progress=null",
    "data.batch_size=4",
    "data.num_workers=0",
    "image_size=64",
    "method=vit",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Photographs as a folder, as shards, and as a dataset of Hugging Face."""
    base = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", base / "cache")
        write_photographs(base / "folder" / "train")
        write_photographs(base / "folder" / "val", per_class=4)
        write_shards(base / "folder" / "val", base / "shards", count=1)
        rows = datasets.load_dataset("imagefolder", data_dir=str(base / "folder" / "val"))["train"]
        both = datasets.DatasetDict({"train": rows, "validation": rows})
        both.save_to_disk(str(base / "set"))
        yield base


@pytest.fixture(scope="module")
def trained(base, composed):
    """A run on the folder, started beside it: with a relative root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        data = ("data=imagefolder", "data.root=folder", "data.exif=true")
        train(composed("train", *FAST, *data, f"run_dir={base / 'run'}"))
    return base / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def run(composed, trained, tmp_path, without_plots):
    def run_evaluate(*overrides):
        cfg = composed(
            "evaluate",
            f"ckpt_path={trained}",
            "trainer.accelerator=cpu",
            f"run_dir={tmp_path / 'evaluate'}",
            "overwrite=true",
            *open_groups(overrides, "evaluate"),
        )
        return evaluate(cfg)

    return run_evaluate


def test_a_checkpoint_opens_its_data_and_the_same_images_elsewhere(run, base):
    its = run()
    assert its.skipped_images == 0
    saved = run("data=huggingface", f"data.path={base / 'set'}", "data.exif=true")
    assert saved.passes == its.passes
    with pytest.raises(DataError, match="classes are not the 3 the model was trained on"):
        run("data=shards", f"data.root={base / 'shards'}")
    (base / "names.txt").write_text("apple\npear\nplum\n")
    shards = run(
        "data=shards",
        *(f"data.root={base / 'shards'}", f"data.classes={base / 'names.txt'}", "data.exif=true"),
    )
    assert shards.passes == its.passes


def test_settings_of_other_kinds_of_data_are_refused(run):
    with pytest.raises(ConfigError, match=r"data\.path"):
        run("data.path=somewhere")


def test_pictures_are_rotated_as_in_training(trained, composed, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = photograph((120, 80), 1, 1)
    upright.save(tmp_path / "a.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    top = []
    for name in ("a.png", "b.png"):
        cfg = composed("predict", f"ckpt_path={trained}", "accelerator=cpu", "pictures=false")
        cfg.overwrite = True
        cfg.image, cfg.run_dir = str(tmp_path / name), str(tmp_path / "out")
        top.append(predict(cfg)[0]["top"])
    assert top[0] == top[1]
    exported = Runtime(describe(load_trained(trained)), [])
    assert (exported.prepare(tmp_path / "a.png") == exported.prepare(tmp_path / "b.png")).all()
    exported.card["exif"] = False
    assert (exported.prepare(tmp_path / "a.png") != exported.prepare(tmp_path / "b.png")).any()


OWN = """
from PIL import Image

class Stripes:
    classes = ["thin", "thick"]

    def __init__(self, split, count=8):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        width = 4 + 12 * (index % 2)
        image = Image.new("RGB", (80, 64))
        image.paste((200, 30 * index, 0), (20, 0, 20 + width, 64))
        return image, index % 2
"""


def test_a_dataset_class_of_the_user(composed, tmp_path, monkeypatch):
    """From a module beside the working directory; the file of a checkpoint alone runs nothing."""
    (tmp_path / "stripes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["data.dataset._target_=stripes.Stripes", "data.dataset.count=12"]
    metrics = train(
        composed("train", *open_groups([*FAST, *settings, f"run_dir={tmp_path / 'run'}"]))
    )
    assert (metrics["train_images"], metrics["val_images"]) == (12, 12)
    arguments = [
        f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}",
        "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'evaluate'}",
    ]
    with pytest.raises(ConfigError, match=r"stripes\.Stripes.* command line"):
        evaluate(composed("evaluate", *arguments))
    arguments += ["data.dataset._target_=stripes.Stripes"]
    assert evaluate(composed("evaluate", *open_groups(arguments, "evaluate"))).images == 12


@pytest.mark.chaos
def test_two_processes_skip_and_count_together(base, tmp_path):
    """Each meets other unreadable images; the log and metrics.json count all of them."""
    folder = tmp_path / "folder"
    shutil.copytree(base / "folder", folder)
    for name, data in (("apple", b""), ("pear", b"<html>"), ("plum", b"\xff\xd8\xff")):
        (folder / "train" / name / "00.jpg").write_bytes(data)
    settings = ("data=imagefolder", f"data.root={folder}", "data.on_error=skip")
    command = (ROOT / "train.py", *FAST, *settings, "trainer.devices=2")
    done = run_python(*command, f"hydra.run.dir={tmp_path / 'run'}")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped_images"] == 3
    assert "3 unreadable images were skipped" in done.stdout + done.stderr

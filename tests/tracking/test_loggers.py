"""What W&B, TensorBoard and CSV files hold after a run, read back from their files."""

import csv
import json
import logging
import runpy
import sys
from collections import defaultdict

import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.errors import ConfigError
from lfvit.runs.setup import build_model
from lfvit.tracking.loggers import WandbLogger, sweep_group, tracked
from lfvit.training.module import Classifier
from small_vits import randomise
from wandb_file import read_offline_run

OFFLINE = ("logger=wandb", "logger.wandb.offline=true")
EVERYWHERE = ("logger=many", "logger.wandb.offline=true")
SHOWN = ("callbacks.predictions.images=3", "callbacks.predictions.every_n_epochs=1")
ETA = 0.5
NUMBERS = ("top1", "pass_1/top1", "pass_2/top1", "exit_fraction", "gmacs", "pass_1/gmacs")


@pytest.fixture(scope="module")
def run(composed, tmp_path_factory):
    """A training that told all three, in a group and with a tag of the user's."""
    run_dir = tmp_path_factory.mktemp("tracked")
    own = ("logger.wandb.group=mine", "logger.wandb.tags=[paper]")
    settings = (*NEEDLE_FAST, *EVERYWHERE, *SHOWN, *own, f"run_dir={run_dir}")
    model = build_model(composed("train", *settings), 6)
    randomise(model, seed=0)  # weights whose confidences differ from image to image
    torch.save(model.state_dict(), run_dir / "start.pth")
    start = (f"init_from={run_dir / 'start.pth'}", "optimizer.lr=1e-5", f"threshold={ETA}")
    train(composed("train", *settings, *start))
    return run_dir


@pytest.fixture(scope="module")
def found(run):
    return read_offline_run(run)


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_run_is_described_and_closed(run, found):
    assert wandb.run is None
    assert (found.run.run_group, found.run.job_type) == ("mine", "train")
    assert found.run.display_name == "train"
    assert list(found.run.tags) == ["paper"]
    assert found.exit_code == 0
    assert found.config["method"]["name"] == "lf_vit"
    assert found.config["schedule"]["epochs"] == 2
    assert found.config["train_run"] == found.run.run_id


def test_the_summary_is_the_operating_point_and_its_cost(found, metrics):
    summary = found.summary
    assert summary["top1"] == pytest.approx(metrics["val/early_exit_top1"])
    assert summary["pass_1/top1"] == pytest.approx(metrics["val/first_top1"])
    assert summary["pass_2/top1"] == pytest.approx(metrics["val/top1"])
    exits = summary["exit_fraction"]
    assert 0 < exits < 1  # at the threshold chosen above
    first, both = summary["pass_1/gmacs"], summary["pass_2/gmacs"]
    assert summary["gmacs"] == pytest.approx(exits * first + (1 - exits) * both)
    assert both == pytest.approx(metrics["gmacs"])
    assert summary["images_per_second"] == metrics["train/images_per_second"] > 0
    assert summary["commit"] == metrics["commit"]


def test_every_epoch_has_each_pass(found):
    for name in ("val/first_top1", "val/top1", "val/early_exit_top1", "val/exit_fraction"):
        assert len(found.values(name)) == 2, name
    assert found.values("train/images_per_second")


def test_tables_and_pictures(run, found, metrics):
    rows = found.table("predictions")
    assert len(found.values("predictions")) == len(found.values("regions")) == 2  # each epoch once
    for row in rows["data"]:
        one = dict(zip(rows["columns"], row, strict=True))
        assert one["prediction"] == one[f"pass_{one['exit_pass']}"]
        assert one["correct"] == (one["prediction"] == one["target"])
        assert one["confidence"] >= ETA or one["exit_pass"] == 2
        picture = found.staged["predictions"][one["image"]["path"]]
        assert picture.is_relative_to(run)  # a run's directory holds all of it
        with Image.open(picture) as image:
            assert image.size == (112, 112)
    assert len(rows["data"]) == found.summary["regions"]["count"] == 3
    for name in found.summary["regions"]["filenames"]:
        with Image.open(found.media / name) as image:
            assert image.width > 2 * image.height  # three panels


def test_tensorboard_and_csv_have_the_same_scalars(run, found):
    with (run / "metrics.csv").open() as file:
        written = defaultdict(list)
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value:
                    written[key].append(float(value))
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    names = set(board.Tags()["scalars"])
    for name in (*NUMBERS, "images_per_second", "val/top1", "val/first_top1", "val/exit_fraction"):
        expected = pytest.approx(found.summary[name])
        assert written[name][-1] == expected, name
        assert board.Scalars(name)[-1].value == expected, name
    logged = {key for row in found.history for key in row if key.startswith(("val/", "train/"))}
    assert logged <= names
    assert logged <= set(written)
    assert board.Tags()["images"] == ["regions"]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_an_evaluation_joins_the_run_it_evaluates(composed, run, found, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    overrides = (f"ckpt_path={checkpoint}", "data.num_workers=0", "trainer.accelerator=cpu")
    cfg = composed("evaluate", *overrides, *EVERYWHERE, "logged_images=2", f"run_dir={tmp_path}")
    numbers = evaluate(cfg)
    evaluation = read_offline_run(tmp_path)
    assert (evaluation.run.run_group, evaluation.run.job_type) == ("mine", "evaluate")
    assert evaluation.run.run_id != found.run.run_id
    assert evaluation.config["train_run"] == found.run.run_id
    assert evaluation.config["method"] == found.config["method"]  # one colour in one plot
    summary = evaluation.summary
    assert summary["top1"] == numbers.configured.top1
    assert summary["gmacs"] == numbers.configured.gmacs
    assert summary["max_loss=0.5/top1"] == numbers.point("max_loss=0.5").top1
    for name in NUMBERS:  # the same weights on the same images, under the same names
        assert summary[name] == pytest.approx(found.summary[name]), name
    assert len(evaluation.table("threshold_curve")["data"]) == len(numbers.curve)
    assert len(evaluation.table("predictions")["data"]) == 2
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("top1")[0].value == pytest.approx(summary["top1"])
    assert set(board.Tags()["images"]) == {"evaluation", "regions"}


def test_one_pass_has_one_accuracy_and_one_cost(composed, tmp_path):
    only_at_the_end = (SHOWN[0], "callbacks.predictions.every_n_epochs=null")
    settings = (*NEEDLE_FAST, "method=vit", *OFFLINE, *only_at_the_end)
    train(composed("train", *settings, f"run_dir={tmp_path}"))
    found = read_offline_run(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert found.summary["top1"] == pytest.approx(metrics["val/top1"])
    assert found.summary["gmacs"] == metrics["gmacs"]
    assert "pass_2/gmacs" not in found.summary
    assert "pass_2" not in found.table("predictions")["columns"]
    assert len(found.values("regions")) == 1


def test_a_failed_run_says_so_and_is_continued_when_resumed(composed, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    original = Classifier.on_train_batch_start

    def stop_in_the_second_epoch(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise Stop
        original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop_in_the_second_epoch)
        cfg = composed("train", *NEEDLE_FAST, *OFFLINE, f"run_dir={tmp_path / 'a'}")
        with pytest.raises(Stop):
            train(cfg)
    failed = read_offline_run(tmp_path / "a")
    assert failed.exit_code == 1
    assert wandb.run is None
    assert "top1" not in failed.summary
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    record = torch.load(checkpoint, weights_only=True)["lfvit"]
    assert record["tracking"]["id"] == failed.run.run_id
    start = (*NEEDLE_FAST, *OFFLINE, f"ckpt_path={checkpoint}")
    train(composed("train", *start, f"run_dir={tmp_path / 'b'}"))
    resumed = read_offline_run(tmp_path / "b")
    assert resumed.run.run_id == failed.run.run_id
    assert resumed.exit_code == 0
    assert failed.values("epoch")[-1] == 0
    assert set(resumed.values("epoch")) == {1}
    # in another project there is nothing to continue
    with tracked(
        composed("train", *start, "logger.wandb.project=other", f"run_dir={tmp_path / 'c'}"),
        "train",
        record,
    ):
        assert wandb.run.id != failed.run.run_id


def test_a_sweep_is_one_group(tmp_path, monkeypatch):
    """Through train.py itself: only Hydra's own main knows that it is sweeping."""
    fast = [o for o in NEEDLE_FAST if o.startswith(("data", "backbone", "callbacks", "trainer"))]
    arguments = ["-m", "method.region_size=3,4", "debug=fast", *fast, *OFFLINE]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, "hydra.sweep.dir=sweeps/one"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    runs = [read_offline_run(tmp_path / "sweeps" / "one" / job) for job in "01"]
    assert [run.run.run_group for run in runs] == ["one", "one"]
    assert [run.run.display_name for run in runs] == ["train/0", "train/1"]
    assert [run.config["method"]["region_size"] for run in runs] == [3, 4]
    assert len({run.run.run_id for run in runs}) == 2
    assert {"backbone=vit_micro", "data=needle", "schedule=needle"} <= set(runs[0].run.tags)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert sweep_group() == "abc"


def test_wandb_failing_does_not_stop_training(composed, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    original = WandbLogger.open

    def open_and_break(self):
        original(self)
        for name in ("log", "finish"):
            monkeypatch.setattr(type(self.experiment), name, fail)

    monkeypatch.setattr(WandbLogger, "open", open_and_break)
    settings = (*NEEDLE_FAST, *EVERYWHERE, "callbacks.predictions.images=1", "trainer.max_epochs=1")
    cfg = composed("train", *settings, f"run_dir={tmp_path}")
    with caplog.at_level(logging.WARNING):
        metrics = train(cfg)
    monkeypatch.undo()
    assert wandb.run is None
    assert metrics["epochs"] == 1
    text = (tmp_path / "metrics.csv").read_text()
    assert "pass_2/top1" in text.partition("\n")[0]
    warnings = [r.message for r in caplog.records if "W&B failed" in r.message]
    assert len(warnings) == 1
    assert "no space left on device" in warnings[0]


def test_wandb_that_does_not_start_is_found_before_training(composed, tmp_path, monkeypatch):
    def refuse(**settings):
        raise wandb.errors.AuthenticationError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    cfg = composed("train", *NEEDLE_FAST, "logger=wandb", f"run_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"no API key.*logger.wandb.offline=true"):
        train(cfg)
    assert not (tmp_path / "checkpoints").exists()

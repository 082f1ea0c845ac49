"""W&B, TensorBoard and CSV files after a run, read back from their files."""

import csv
import logging
from collections import defaultdict

import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import NEEDLE_FAST, run_script
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.errors import ConfigError
from lfvit.runs.models import build_model
from lfvit.runs.record import read_record
from lfvit.tracking.loggers import CSVLogger, WandbLogger, sweep_group, tracked
from lfvit.training.module import Classifier
from lfvit.utils.atomic_io import read_json
from small_vits import randomise
from wandb_file import read_offline_run

OFFLINE = ("logger=wandb", "logger.wandb.offline=true")
EVERYWHERE = ("logger=[csv,tensorboard,wandb]", "logger.wandb.offline=true")
FEWER = ("data.train_images=16", "data.val_images=8")
ETA = 0.5
NUMBERS = ("top1", "exit_fraction", "gmacs")
EPOCH_METRICS = ("val/first_top1", "val/top1", "val/early_exit_top1", "val/exit_fraction")


@pytest.fixture(scope="module")
def run(composed, tmp_path_factory):
    """A training with all three loggers, in a group and with a tag of the user's."""
    run_dir = tmp_path_factory.mktemp("tracked")
    shown = ("callbacks.predictions.images=3", "callbacks.predictions.every_n_epochs=1")
    given = ("logger.wandb.group=mine", "logger.wandb.tags=[paper]")
    settings = (*NEEDLE_FAST, *EVERYWHERE, *shown, *given, f"run_dir={run_dir}")
    model = build_model(composed("train", *settings), 6)
    randomise(model, seed=0)  # weights whose confidences differ from image to image
    torch.save(model.state_dict(), run_dir / "start.pth")
    start = (f"init_from={run_dir / 'start.pth'}", "optimizer.lr=1e-5", f"threshold={ETA}")
    slower = ("schedule.layer_decay=0.5", "schedule.lr_batch=8", "trainer.log_every_n_steps=1")
    train(composed("train", *settings, *start, *slower))
    return run_dir


@pytest.fixture(scope="module")
def offline(run):
    return read_offline_run(run)


def test_a_run_is_described_and_closed(offline):
    assert wandb.run is None
    assert (offline.run.run_group, offline.run.job_type) == ("mine", "train")
    assert offline.run.display_name == "train"
    assert list(offline.run.tags) == ["paper"]
    assert offline.exit_code == 0
    assert offline.config["method"]["name"] == "lf_vit"


def test_the_summary_is_the_operating_point_and_its_cost(run, offline):
    summary, metrics = offline.summary, read_json(run / "metrics.json")
    assert summary["top1"] == pytest.approx(metrics["val/early_exit_top1"])
    assert 0 < summary["exit_fraction"] < 1  # at the threshold chosen above
    assert 0 < summary["gmacs"] < metrics["gmacs"]
    assert summary["train/images_per_second"] == metrics["train/images_per_second"] > 0


def test_predictions_are_logged_each_epoch_once(run, offline):
    rows = offline.table("predictions")
    assert len(offline.values("predictions")) == len(offline.values("regions")) == 2
    for row in rows["data"]:
        one = dict(zip(rows["columns"], row, strict=True))
        assert one["confidence"] >= ETA or one["exit_pass"] == 2
        picture = offline.staged["predictions"][one["image"]["path"]]
        assert picture.is_relative_to(run)  # a run's folder holds all of it
        with Image.open(picture) as image:
            assert image.size == (112, 112)
    assert len(rows["data"]) == offline.summary["regions"]["count"] == 3
    for name in offline.summary["regions"]["filenames"]:
        with Image.open(offline.media / name) as image:
            assert image.width > 2 * image.height  # three panels


def test_tensorboard_and_csv_have_the_same_scalars(run, offline):
    with (run / "metrics.csv").open() as file:
        written = defaultdict(list)
        for row in csv.DictReader(file):
            for key, value in row.items():
                if value:
                    written[key].append(float(value))
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in (*NUMBERS, *EPOCH_METRICS, "train/images_per_second"):
        expected = pytest.approx(offline.summary[name])
        assert written[name][-1] == expected, name
        assert board.Scalars(name)[-1].value == expected, name
    assert all(len(offline.values(name)) == 2 for name in EPOCH_METRICS)
    assert [key for key in written if "lr" in key] == ["train/lr"]  # of all groups, the highest
    assert max(written["train/lr"]) == pytest.approx(1e-5)
    logged = {key for row in offline.history for key in row if key.startswith(("val/", "train/"))}
    assert logged <= set(board.Tags()["scalars"])
    assert logged <= set(written)
    assert board.Tags()["images"] == ["regions"]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_an_evaluation_joins_the_run_it_evaluates(composed, run, offline, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    overrides = (f"ckpt_path={checkpoint}", "data.num_workers=0", "trainer.accelerator=cpu")
    cfg = composed("evaluate", *overrides, *EVERYWHERE, "logged_images=2", f"run_dir={tmp_path}")
    evaluation = evaluate(cfg)
    found = read_offline_run(tmp_path)
    assert (found.run.run_group, found.run.job_type) == ("mine", "evaluate")
    assert found.run.run_id != offline.run.run_id
    assert found.config["method"] == offline.config["method"]  # one colour in one plot
    assert found.summary["top1"] == evaluation.configured.top1
    assert found.summary["max_loss=0.5/top1"] == evaluation.point("max_loss=0.5").top1
    for name in NUMBERS:  # the same weights on the same images, under the same names
        assert found.summary[name] == pytest.approx(offline.summary[name]), name
    assert len(found.table("threshold_curve")["data"]) == len(evaluation.curve)
    assert len(found.table("predictions")["data"]) == 2
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("top1")[0].value == pytest.approx(found.summary["top1"])
    assert set(board.Tags()["images"]) == {"regions"}


def test_a_failed_run_has_exit_code_1_and_is_continued(composed, tmp_path, monkeypatch):
    """A model of one pass, which has one accuracy and one cost."""

    def stop_in_the_second_epoch(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise InterruptedError
        original(self, batch, batch_idx)

    original = Classifier.on_train_batch_start
    settings = (*NEEDLE_FAST, *FEWER, *OFFLINE, "method=vit")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop_in_the_second_epoch)
        with pytest.raises(InterruptedError):
            train(composed("train", *settings, f"run_dir={tmp_path / 'a'}"))
    failed = read_offline_run(tmp_path / "a")
    assert failed.exit_code == 1
    assert wandb.run is None
    assert "top1" not in failed.summary
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    resume = (*settings, f"ckpt_path={checkpoint}")
    train(composed("train", *resume, f"run_dir={tmp_path / 'b'}"))
    resumed = read_offline_run(tmp_path / "b")
    assert (resumed.run.run_id, resumed.exit_code) == (failed.run.run_id, 0)
    assert failed.values("epoch")[-1] == 0
    assert set(resumed.values("epoch")) == {1}
    metrics = read_json(tmp_path / "b" / "metrics.json")
    assert resumed.summary["top1"] == pytest.approx(metrics["val/top1"])
    assert resumed.summary["gmacs"] == metrics["gmacs"]
    # in another project there is nothing to continue
    record = read_record(torch.load(checkpoint, weights_only=True), checkpoint)
    other = ("logger.wandb.project=other", f"run_dir={tmp_path / 'c'}")
    with tracked(composed("train", *resume, *other), "train", record):
        assert wandb.run.id != failed.run.run_id


def test_a_sweep_is_one_group(tmp_path, monkeypatch):
    """Through train.py itself: only Hydra's main knows that it sweeps."""
    fast = [o for o in NEEDLE_FAST if o.startswith(("data", "backbone", "callbacks", "trainer"))]
    arguments = ["-m", "method.region_size=3,4", "trainer.fast_dev_run=true", *fast, *OFFLINE]
    monkeypatch.chdir(tmp_path)
    assert run_script("train", *arguments, "hydra.sweep.dir=sweeps/one") == 0
    runs = [read_offline_run(tmp_path / "sweeps" / "one" / job) for job in "01"]
    assert [run.run.run_group for run in runs] == ["one", "one"]
    assert [run.run.display_name for run in runs] == ["train/0", "train/1"]
    assert [run.config["method"]["region_size"] for run in runs] == [3, 4]
    assert len({run.run.run_id for run in runs}) == 2
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert sweep_group() == "abc"


def test_wandb_failing_does_not_stop_training(composed, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    def open_and_break(self):
        original(self)
        for name in ("log", "finish"):
            monkeypatch.setattr(type(self.experiment), name, fail)

    original = WandbLogger.open
    monkeypatch.setattr(WandbLogger, "open", open_and_break)
    settings = (*NEEDLE_FAST, *FEWER, *EVERYWHERE, "trainer.max_epochs=1")
    with caplog.at_level(logging.WARNING):
        metrics = train(composed("train", *settings, f"run_dir={tmp_path}"))
    monkeypatch.undo()
    assert wandb.run is None
    assert metrics["epochs"] == 1
    assert "val/top1" in (tmp_path / "metrics.csv").read_text().partition("\n")[0]
    (warning,) = [r.message for r in caplog.records if "W&B failed" in r.message]
    assert "no space left on device" in warning


def test_wandb_that_does_not_start_stops_the_run_before_training(composed, tmp_path, monkeypatch):
    def refuse(**settings):
        raise wandb.errors.AuthenticationError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    cfg = composed("train", *NEEDLE_FAST, "logger=wandb", f"run_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"no API key.*logger.wandb.offline=true"):
        train(cfg)
    assert not (tmp_path / "checkpoints").exists()


def log_steps(folder, steps, purge_step=None, **more):
    logger = CSVLogger(str(folder), name="", version="", purge_step=purge_step)
    for step in steps:
        logger.log_metrics({"loss": step / 10, **more}, step)
        logger.save()


def csv_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), row["loss"]) for row in csv.DictReader(file)]


def test_csv_of_a_resumed_run_has_every_step_once(tmp_path):
    log_steps(tmp_path, range(6))
    log_steps(tmp_path, [4, 5], purge_step=4, another=1.0)
    assert csv_rows(tmp_path) == [(step, str(step / 10)) for step in range(6)]
    path = tmp_path / "metrics.csv"  # a power cut leaves a row incomplete
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    log_steps(tmp_path, [5], purge_step=5)
    assert csv_rows(tmp_path) == [(step, str(step / 10)) for step in range(6)]
    log_steps(tmp_path, [0])  # a run that starts
    assert csv_rows(tmp_path) == [(0, "0.0")]
    log_steps(tmp_path / "elsewhere", [4], purge_step=4)
    assert csv_rows(tmp_path / "elsewhere") == [(4, "0.4")]

"""How a training begins and ends: what it says, what counts as done, what is never overwritten."""

import json
import logging

import pytest
import torch

from conftest import NEEDLE_FAST
from lfvit.commands.diagnose import diagnose
from lfvit.commands.evaluate import evaluate
from lfvit.commands.export import export
from lfvit.commands.jobs import run_job
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.errors import ConfigError
from lfvit.runs.trainers import has_bfloat16
from lfvit.utils.atomic_io import read_json

SMALL = (*NEEDLE_FAST, "data.val_images=12", "logger=none")


class StopsEarly:
    """A callback of a user's, which ends the training at some place."""

    def __new__(cls, hook, count=1):
        import lightning as L

        def stop(self, trainer, *_):
            self.calls += 1
            trainer.should_stop = trainer.should_stop or self.calls == count

        callback = type("Stops", (L.Callback,), {hook: stop, "calls": 0})
        return callback()


def stops(hook, count=1):
    target = f"callbacks.mine={{_target_:test_endings.StopsEarly,hook:{hook},count:{count}}}"
    return f"+{target}"


@pytest.fixture
def job(composed, tmp_path):
    """Train in one directory, as `train.py` would."""

    def run(*overrides):
        cfg = composed("train", *SMALL, f"run_dir={tmp_path / 'run'}", *overrides)
        return run_job(cfg, tmp_path, repeat=True, evaluation=None)

    return run


@pytest.fixture(scope="module")
def whole(composed, tmp_path_factory):
    """The metrics of the training that nothing ends early."""
    return train(composed("train", *SMALL, f"run_dir={tmp_path_factory.mktemp('whole')}"))


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("trainer.max_steps=3", "trainer.max_steps=3 ended it in epoch 1 of 2"),
        ("trainer.max_steps=4", "trainer.max_steps=4 ended it after epoch 1 of 2"),
        ("trainer.max_time=00:00:00:00", "trainer.max_time ended it in epoch 0 of 2"),
        (stops("on_train_batch_end", 6), "a callback ended it in epoch 2 of 2"),
        (stops("on_train_epoch_end"), "a callback ended it after epoch 1 of 2"),
        (stops("on_validation_end", 2), "a callback ended it after epoch 1 of 2"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run tries a few batches"),
    ],
)
def test_done_means_that_the_schedule_was_finished(job, tmp_path, limit, reason, whole):
    ended = job(limit)
    record = read_json(tmp_path / "run" / "run.json")
    assert (ended.status, record["status"], record["error"]) == ("stopped", "stopped", reason)
    if "fast_dev_run" in limit or "callbacks" in limit:  # other settings
        return
    ended = job("ckpt_path=auto")
    assert ended.status == ("trained" if "time" in limit else "continued")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"
    different = {key for key in whole if whole[key] != ended.metrics[key]}
    assert different <= {"train_seconds", "train/images_per_second"}


@pytest.mark.parametrize(
    "limit",
    ["trainer.max_steps=8", "trainer.limit_train_batches=2", "callbacks.early_stop.mode=max"],
)
def test_what_reaches_its_end_is_done(job, tmp_path, limit):
    """With a limit of time, which begins anew with every start."""
    early = "early_stop" in limit
    stop = ["_target_=lightning.pytorch.callbacks.EarlyStopping", "monitor=val/top1"]
    stop = [f"callbacks.early_stop.{s}" for s in [*stop, "divergence_threshold=1000"]]
    ended = job(limit, "trainer.max_time=00:01:00:00", *(stop if early else []))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert "Timer" not in torch.load(last, weights_only=True)["callbacks"]
    assert ended.status == "trained"
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"
    assert ended.metrics["epochs"] == (1 if early else 2)


COMMANDS = {"train": train, "evaluate": evaluate, "predict": predict, "diagnose": diagnose}
COMMANDS["export"] = export
HELD = ("run.json", "checkpoints/last.ckpt", "checkpoints/epoch=3.ckpt", "config.yaml")
HELD += ("evaluate.json", "predictions.json", "model.json", "benchmark.csv", "model.onnx")


@pytest.mark.parametrize(
    ("command", "held"),
    [*((c, "run.json") for c in COMMANDS), *(("evaluate", file) for file in HELD[1:])],
)
def test_nothing_is_written_over(composed, trained_run, photographs, tmp_path, command, held):
    (tmp_path / held).parent.mkdir(exist_ok=True)
    (tmp_path / held).write_text('{"status": "done"}')
    settings = [f"run_dir={tmp_path}"]
    if command != "train":
        settings.append(f"ckpt_path={trained_run}/checkpoints/last.ckpt")
    if command == "predict":
        settings.append(f"image={photographs}/apple/00.jpg")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds results .{held}.*overwrite=true"):
        COMMANDS[command](composed(command, *settings))
    assert (tmp_path / held).read_text() == '{"status": "done"}'
    assert {path.name for path in tmp_path.iterdir()} <= {held.split("/")[0], "run.lock"}


def test_a_finished_training_is_overwritten_when_that_is_asked_for(job, tmp_path):
    job()
    with pytest.raises(ConfigError, match="overwrite=true"):
        job("seed=1")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match="init_from=.* would be overwritten"):
        job("seed=1", "overwrite=true", f"init_from={last}")
    assert last.exists()
    assert job("seed=1", "overwrite=true").status == "trained"
    assert read_json(tmp_path / "run" / "run.json")["settings"]["seed"] == 1


def test_a_training_says_what_it_does(job, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lfvit")
    job("threshold=1.01")
    lines = [record.getMessage() for record in caplog.records]
    text = "\n".join(lines)
    for part in (
        "training: 32 images of 6 classes",
        "parameters, 0.",
        " GMACs",
        "starts from random weights",
        f"precision {'bf16-mixed' if has_bfloat16('cpu') else '32-true'}",
        f"run directory: {tmp_path / 'run'}",
        "done after epoch 2 of 2",
        "no image leaves early at 1.01; 0",
        f"to evaluate: python evaluate.py ckpt_path={tmp_path / 'run'}/checkpoints/last.ckpt",
        f"written to {tmp_path / 'run'}",
    ):
        assert part in text
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/2", "2/2"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"val/top1 {metrics['val/top1']:.4g}" in epochs[-1]

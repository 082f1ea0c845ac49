"""Trainings that are stopped, killed and run out of disk, and what their continuation comes to."""

import json
import os
import re
import shlex
import shutil
import signal

import pytest
import torch
from omegaconf import OmegaConf

from conftest import NEEDLE_FAST, ROOT, run_python
from interruptions import differences, signal_at
from lfvit.commands.jobs import run_job
from lfvit.commands.train import train
from lfvit.errors import CheckpointError, ConfigError, StorageError
from lfvit.runs.configs import compose_config
from lfvit.runs.models import build_model
from lfvit.utils.signals import Stopped

RECIPE = (  # four batches in each of three epochs, the phase changes after the first
    *NEEDLE_FAST,
    *("data.train_images=16", "data.val_images=8", "data.batch_size=4"),
    *("trainer.max_epochs=3", "schedule.selection_start=1"),
    *("augment=deit", "schedule.drop_path_rate=0.2", "callbacks.ema.decay=0.9"),
    *("trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1"),
)


@pytest.fixture(scope="module")
def runs(composed, tmp_path_factory):
    """Trainings below one folder, by name; one that is never stopped for every set of overrides."""
    folder = tmp_path_factory.mktemp("interrupted")

    def overrides(name, *more, signum=signal.SIGTERM, batch=0, hook="train"):
        once = folder / f"{name}.once"
        start = folder / f"{named(*more)}.pth"
        if "schedule.distill_weight=1" in more:  # by the weights it starts from
            if not start.exists():
                model = build_model(composed("train", *RECIPE, *more), 6)
                torch.save(model.state_dict(), start)
            more = (*more, f"init_from={start}")
        return (*RECIPE, *more, *signal_at(signum, batch, once, hook)), folder / name

    def run(name, *more, **when):
        settings, run_dir = overrides(name, *more, **when)
        cfg = composed("train", *settings, f"run_dir={run_dir}", "ckpt_path=auto")
        return run_job(cfg, folder, evaluation=None).metrics

    def whole(*more):
        name = named("whole", *more)
        if not (folder / name).exists():
            (folder / f"{name}.once").touch()
            run(name, *more)
        return folder / name

    run.overrides, run.whole, run.folder = overrides, whole, folder
    return run


def named(*parts):
    """A folder's name."""
    return re.sub(r"\W+", "_", " ".join(map(str, parts)))


WORKERS = ("data.num_workers=2", "augment.repeats=3")
LONGER = pytest.mark.chaos
MOMENTS = [
    ((), 3, "train"),  # the last step of an epoch: validation follows
    ((), 3, "validation"),
    (WORKERS, 6, "train"),
    (("trainer.accumulate_grad_batches=3",), 6, "train"),
    (("augment=lv_vit", "backbone=lv_vit_micro"), 6, "train"),
    (("method=vit", "reducer=dynamic_vit", "schedule.distill_weight=1"), 6, "train"),
    (("reducer=frequency", "schedule.distill_weight=1"), 6, "train"),
    *(pytest.param((), moment, "train", marks=LONGER) for moment in (0, 4, 6, 10, 11)),
    *(pytest.param(("method=vit",), moment, "train", marks=LONGER) for moment in (2, 9)),
    pytest.param(("data.cache=device",), 9, "train", marks=LONGER),
    pytest.param(("trainer.val_check_interval=2",), 5, "train", marks=LONGER),
]


@pytest.mark.parametrize(("more", "batch", "hook"), MOMENTS, ids=str)
def test_a_stopped_run_ends_like_one_that_was_not(runs, more, batch, hook):
    name = named(hook, batch, *more)
    with pytest.raises(Stopped) as stopped:
        runs(name, *more, batch=batch, hook=hook)
    assert stopped.value.status == 143
    folder = runs.folder / name
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["error"]) == ("stopped", "SIGTERM")
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    if hook == "train" and (batch + 1) % 4 and "accumulate" not in str(more):
        assert saved == batch + 1  # nothing is lost
    torch.manual_seed(999)  # nothing may depend on what was drawn before
    runs(name, *more, batch=batch, hook=hook)
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert differences(runs.whole(*more), folder) == []


def test_a_killed_run_ends_like_one_that_was_not(runs):
    """kill -9 of a real process, within an epoch, while a new checkpoint waits for its logs."""
    settings, folder = runs.overrides("killed", signum=signal.SIGKILL, batch=9)
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command = (ROOT / "train.py", *settings, f"hydra.run.dir={folder}")
    run_python(*command, cwd=ROOT, status=-signal.SIGKILL, PYTHONPATH=path)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    checkpoints = folder / "checkpoints"
    assert (checkpoints / "last.ckpt.partial").exists()
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 8
    runs("killed", signum=signal.SIGKILL, batch=9)
    assert differences(runs.whole(), folder) == []
    assert sorted(os.listdir(checkpoints)) == ["best.ckpt", "last.ckpt"]


def test_a_full_disk_keeps_the_checkpoint_before(runs, monkeypatch):
    from lfvit.utils import atomic_io as files

    original, written = os.fsync, []

    def fill_up(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        written.append(name)
        if sum("last.ckpt" in other for other in written) > 8:
            raise OSError(28, "No space left on device")
        original(descriptor)

    (runs.folder / "full.once").touch()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fill_up)
        with pytest.raises(StorageError, match=r"last\.ckpt.* No space left on device .*is kept"):
            runs("full")
    folder = runs.folder / "full"
    assert json.loads((folder / "run.json").read_text())["status"] in ("failed", "running")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 4
    runs("full")
    assert differences(runs.whole(), folder) == []


def test_auto_finds_what_is_done(runs):
    folder = runs.whole()
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert runs(folder.name) == json.loads((folder / "metrics.json").read_text())
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    # killed after the last epoch: what was measured is in the checkpoint
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("done", "running"))
    again = runs(folder.name)
    assert again["val/top1"] == json.loads((folder / "metrics.json").read_text())["val/top1"]
    assert again["epochs"] == 3


def test_auto_does_not_mix_two_trainings(runs, composed, tmp_path):
    folder = shutil.copytree(runs.whole(), tmp_path / "copy")
    start = (*RECIPE, *signal_at(15, 0, runs.folder / "whole.once"))
    cfg = composed("train", *start, "data.batch_size=6", f"run_dir={folder}", "ckpt_path=auto")
    with pytest.raises(ConfigError, match=r"other settings \(data.batch_size=4 there, 6 here\)"):
        run_job(cfg, tmp_path)


@pytest.fixture
def stopped(runs):
    """The directory of a run that was stopped within its second epoch."""
    folder = runs.folder / "second"
    if not folder.exists():
        with pytest.raises(Stopped):
            runs("second", batch=5)
    return folder


def test_a_damaged_checkpoint_is_never_passed_over(runs, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "it's #1")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.run_dir, cfg.ckpt_path = str(folder), "auto"
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*Nothing was started") as caught:
        run_job(cfg, tmp_path)
    (hint,) = re.findall("continue from (.*), or remove", str(caught.value))
    best = compose_config("train", shlex.split(hint)).ckpt_path
    assert best == str(folder / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=2", "in the middle of an epoch, with data.batch_size=4 in 1 process"),
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches=1, not data.batch_size=4"),
        ("data.train_images=20", "was trained on 16 images, now there are 20"),
    ],
)
def test_an_epoch_is_divided_as_it_was(composed, stopped, tmp_path, override, message):
    last = stopped / "checkpoints" / "last.ckpt"
    cfg = composed("train", *RECIPE, override, f"ckpt_path={last}", f"run_dir={tmp_path}")
    with pytest.raises(CheckpointError, match=message):
        train(cfg)


def test_between_epochs_the_images_of_a_step_may_be_divided_anew(composed, runs, tmp_path):
    last = runs.whole() / "checkpoints" / "last.ckpt"
    start = (*RECIPE, f"ckpt_path={last}", f"run_dir={tmp_path}", "data.batch_size=2")
    assert train(composed("train", *start, "trainer.accumulate_grad_batches=2"))["epochs"] == 3
    with pytest.raises(CheckpointError, match="same number of images per optimizer step"):
        train(composed("train", *start))

"""Whole commands in several processes: the same files, numbers and weights as in one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from together import together

from conftest import NEEDLE_FAST
from lfvit.data.images import UnreadableImageError
from lfvit.data.needle import NeedleSet
from lfvit.runs.configs import compose_config
from lfvit.training.module import Classifier
from lfvit.utils.distributed import START_TIME, join_launched

SIZES = (17, 2)  # numbers of validation images
FULL = "trainer.precision=32-true"  # processes differ from one in the last digits
SAME = (*NEEDLE_FAST, FULL, "data.val_images=17", "logger=csv", "callbacks.ema.decay=0.9")
ONE = (*SAME, "data.batch_size=16")


def train(folder: Path, *settings: str) -> dict[str, Any]:
    from lfvit.commands.train import train

    return train(compose_config("train", [*settings, f"run_dir={folder}"]))


def evaluations(checkpoint: Path, folder: Path, *settings: str) -> dict[int, Any]:
    """The contents of evaluate.json for sets of several sizes, whatever may differ left out."""
    from lfvit.commands.evaluate import evaluate

    found = {}
    for size in SIZES:
        out = folder / f"{size} images"
        cpu = ("trainer.accelerator=cpu", FULL, "data.num_workers=0", *settings, f"run_dir={out}")
        data = (f"ckpt_path={checkpoint}", f"data.val_images={size}")
        found[size] = evaluate(compose_config("evaluate", [*data, *cpu])).model_dump()
        found[size].pop("environment")
    return found


def broken(folder: Path, *settings: str) -> dict[str, Any]:
    """Some images of training and validation are unreadable."""
    original = NeedleSet.__getitem__
    unreadable = {"train": {1, 2, 20}, "val": set(range(8, 17))}

    def getitem(self: Any, index: int) -> Any:
        if index in unreadable[self.split]:
            raise UnreadableImageError(f"{self.split} image {index}: broken")
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NeedleSet, "__getitem__", getitem)
        return train(folder, *SAME, *settings, "data.on_error=skip")


def interrupted(folder: Path, *settings: str) -> None:
    original = Classifier.on_train_batch_start

    def stop(self: Any, batch: Any, index: int) -> None:
        assert self.current_epoch == 0, "stopped"
        original(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop)
        with pytest.raises(AssertionError, match="stopped"):
            train(folder, *settings)


def shown(folder: Path, *settings: str) -> list[tuple[float, float]]:
    """With pictures in a logger: how this process mixes images, and draws in the model, by step."""
    found = []
    original = Classifier.training_step

    def step(self: Any, batch: Any, index: int) -> Any:
        found.append((batch.targets.max(dim=1).values.mean().item(), torch.rand(1).item()))
        return original(self, batch, index)

    pictures = ("logger=tensorboard", "data.cache=device", "augment=device", "trainer.max_epochs=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", step)
        train(folder, *SAME, *settings, *pictures)
    return found


def several(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """In each of two processes."""
    from lfvit.commands.jobs import run_job

    ddp = ("trainer=ddp", "trainer.accelerator=cpu")
    arguments = join_launched("train")
    found: dict[str, Any] = {"started": os.environ[START_TIME], "arguments": arguments}
    tracked = ("logger=[csv,tensorboard,wandb]", "logger.wandb.offline=true")
    place = f"run_dir={folder / 'jobs' / 'ddp'}"
    cfg = compose_config("train", [*SAME, *tracked, *ddp, place])
    jobs = [run_job(cfg, folder / "jobs") for _ in range(2)]
    found["jobs"], found["ddp"] = [job.status for job in jobs], jobs[0].metrics
    found["draws"] = shown(folder / "shown", *ddp)
    interrupted(folder / "begun", *SAME, *ddp)
    last = folder / "begun" / "checkpoints" / "last.ckpt"
    train(folder / "resumed", *SAME, *ddp, f"ckpt_path={last}")
    found["broken"] = broken(folder / "broken", *ddp)
    return found | only_counting(checkpoint, folder)


def only_counting(checkpoint: Path, folder: Path) -> dict[str, Any]:
    ddp = ("trainer=ddp", "trainer.accelerator=cpu")
    return {"evaluations": evaluations(checkpoint, folder / "evaluations", *ddp)}


@pytest.fixture(scope="module")
def checkpoint(trained_run: Path) -> Path:
    return trained_run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def two(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    return together(2, several, checkpoint, folder)


@pytest.fixture(scope="module")
def one(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    found = {"plain": train(folder / "plain", *ONE), "folder": folder}
    return found | {"evaluations": evaluations(checkpoint, folder / "evaluations")}


def weights(run: Path) -> dict[str, Any]:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: content[key] for key in ("state_dict", "current_model_state")}


def check_same_weights(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    """Those that were trained and their average, by name."""
    found, expected = weights(ours), weights(theirs)
    for kind, values in expected.items():
        assert found[kind].keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(found[kind][name], value, atol=tolerance, rtol=tolerance)


def test_weights_are_those_of_one_process_also_after_resuming(two, one, folder):
    check_same_weights(folder / "jobs" / "ddp", one["folder"] / "plain")
    check_same_weights(folder / "resumed", folder / "jobs" / "ddp", 1e-6)


def test_metrics_are_those_of_one_process(two, one):
    same = [name for name in one["plain"] if name.startswith(("val/", "best_val", "steps"))]
    assert len(same) > 8
    for metrics in (two[0]["ddp"], two[1]["ddp"]):
        for name in same:
            assert metrics[name] == pytest.approx(one["plain"][name], rel=1e-4), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.chaos)])
def test_every_image_is_counted_once(request, one, checkpoint, folder, processes, size):
    found = request.getfixturevalue({2: "two", 3: "three"}[processes])
    for process in found:
        ours, theirs = process["evaluations"][size], one["evaluations"][size]
        assert ours["images"] == size
        assert without_rounding(ours) == without_rounding(theirs)


@pytest.fixture(scope="module")
def three(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(3, only_counting, checkpoint, tmp_path_factory.mktemp("three"))


def without_rounding(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_rounding(value) for key, value in found.items()}
    if isinstance(found, list):
        return [without_rounding(value) for value in found]
    return round(found, 4) if isinstance(found, float) else found


def test_processes_share_one_run_directory(two):
    assert two[0]["started"] == two[1]["started"]
    assert two[0]["arguments"] == []
    assert two[1]["arguments"] == ["hydra.job.name=train_process_1", "hydra.output_subdir=null"]


def test_processes_draw_differently(two):
    first, other = (process["draws"] for process in two)
    assert len(first) == 2
    assert not {mixed for mixed, _ in first} & {mixed for mixed, _ in other}
    assert not {drawn for _, drawn in first} & {drawn for _, drawn in other}


def test_unreadable_images_are_left_out_by_all_processes(two):
    for metrics in (process["broken"] for process in two):
        assert metrics["steps"] == 4
        assert metrics["skipped_images"] == 3 + 9
        right = metrics["val/top5"] / 100 * 8  # of the images that the other process could read
        assert right == pytest.approx(round(right), abs=1e-3)


def test_the_main_process_shows_images_alone(two, folder):
    events = [path.read_bytes() for path in folder.glob("shown/**/events.out.tfevents.*")]
    assert any(b"predictions" in content for content in events)


def test_processes_decide_together_what_a_job_does(two, folder):
    assert [process["jobs"] for process in two] == [["trained", "already done"]] * 2
    assert len([*folder.glob("jobs/*/evaluation/evaluate.json")]) == 1

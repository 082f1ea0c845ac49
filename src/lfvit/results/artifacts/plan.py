"""What would run, and how long it would take on this machine: real steps, nothing trained."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lfvit.commands.train import build_module
from lfvit.data.batches import Batch
from lfvit.measure.costs import count_macs
from lfvit.models.resample import downsample
from lfvit.results.artifacts.runs import Run
from lfvit.runs.devices import find_device, trainer_settings
from lfvit.runs.setup import make_data
from lfvit.training.settings import Schedule
from lfvit.utils.validation import plain, validate

REPEATS = 3
CPU_BATCH = 2  # images in a timed step where there is no GPU; times are scaled to the real batch


class Timer:
    """Seconds per training step, measured once for every distinct model, phase and batch."""

    def __init__(self) -> None:
        self.device = find_device("auto")
        self.known: dict[Any, float] = {}

    def seconds(self, cfg: DictConfig, num_classes: int) -> tuple[float, float]:
        """Of a step in phase one (the whole image in the second pass), and after it.

        Args:
            cfg: of a training.
            num_classes: outputs of the head.
        """
        epochs = cfg.trainer.max_epochs
        return self._step(cfg, epochs, num_classes), self._step(cfg, 0, num_classes)

    def _step(self, cfg: DictConfig, selection_start: int, num_classes: int) -> float:
        cfg = cfg.copy()
        cfg.schedule.selection_start = selection_start
        cfg.init_from, cfg.pretrained = None, False
        cfg.compile = cfg.compile and self.device.type == "cuda"  # a CPU would compile for minutes
        batch = int(cfg.data.batch_size)
        timed = batch if self.device.type == "cuda" else min(batch, CPU_BATCH)
        module: Any = build_module(cfg, [str(i) for i in range(num_classes)])
        module = module.to(self.device).train()
        selects = module.num_passes > 1 and not module.phase_one
        size, precision = int(cfg.image_size), str(trainer_settings(cfg)["precision"])
        learns = cfg.schedule.distill_weight, cfg.schedule.loss, module.learns_tokens
        same = (count_macs(module.model) if selects or module.num_passes == 1 else "whole",)
        backbone, reducer = str(cfg.backbone), str(cfg.reducer)
        key = (*same, module.num_passes, size, backbone, reducer, batch, precision, *learns)
        if key not in self.known:
            if module.teacher is not None:
                module.teacher.to(self.device)
            self.known[key] = self._time(module, timed, size, "bf16" in precision) * batch / timed
        return self.known[key]

    def _time(self, module: Any, batch: int, size: int, half: bool) -> float:
        """Median seconds of forward, loss, backward and optimizer step on noise."""
        images = torch.randn(batch, 3, size, size, device=self.device)
        targets = torch.arange(batch, device=self.device) % module.num_classes
        optimizer = torch.optim.AdamW(module.model.parameters(), lr=0.0)
        quiet: Any = lambda *_, **__: None  # noqa: E731
        module.log = quiet  # there is no trainer to log to

        def step() -> None:
            given = Batch(images, downsample(images), targets, None)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss: Tensor = module.training_step(given, 0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        times = []
        for _ in range(REPEATS + 1):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        return sorted(times[1:])[REPEATS // 2]


def plan(
    runs: Sequence[Run], served: Mapping[Path, list[str]], scale: DictConfig
) -> list[dict[str, Any]]:
    """One row per run: what needs it, its steps, their time, and the hours on this device.

    Args:
        runs: in the order in which they would be made.
        served: folder of a run -> names of the artifacts that need it.
        scale: ``train_images`` and ``num_classes`` hold where the data is not at hand.

    Returns:
        Rows with run, artifacts, state, steps, seconds_per_step (mean over both phases) and hours,
        of what is not done. Steps are those of one device with the configured batch.
    """
    timer = Timer()
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "run": f"{run.name}, seed {run.seed}",
            "artifacts": served.get(run.folder, []),
            "state": run.state,
            "steps": 0,
            "seconds_per_step": None,
            "hours": 0.0,
        }
        if run.train is not None and run.state != "done":
            schedule = validate(Schedule, plain(run.train.schedule), "schedule")
            epochs = run.train.trainer.max_epochs
            images, classes = data_size(run.train, scale)
            per_epoch = images // int(run.train.data.batch_size)
            one, two = timer.seconds(run.train, classes)
            first = schedule.selection_epoch(epochs) if run.train.method.name != "vit" else 0
            first = min(first, epochs)
            seconds = per_epoch * (one * first + two * (epochs - first))
            row["steps"] = per_epoch * epochs
            row["seconds_per_step"] = seconds / row["steps"] if row["steps"] else None
            row["hours"] = seconds / 3600
        rows.append(row)
    return rows


def data_size(cfg: DictConfig, scale: DictConfig) -> tuple[int, int]:
    """Training images and classes: as the data says, or as the scale does where it is missing."""
    settings = plain(cfg.data)
    if "train_images" in settings:  # generated
        return settings["train_images"], settings["num_classes"]
    if not Path(str(settings["root"])).expanduser().is_dir():
        return scale.train_images, scale.num_classes
    data = make_data(settings)
    data.setup()
    return len(data.train_images), len(data.classes)

"""What `reproduce` would run, and how long it would take here: real steps, nothing trained."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lfvit.commands.reproduce_runs import Planned
from lfvit.commands.train import build_module
from lfvit.data.batches import Batch
from lfvit.measure.costs import count_macs
from lfvit.models.resample import downsample
from lfvit.results.artifacts.settings import Scale
from lfvit.runs.provenance import machine
from lfvit.runs.setup import find_device, make_data, trainer_settings
from lfvit.utils.markdown import print_table
from lfvit.utils.validation import plain

REPEATS = 3
CPU_BATCH = 2  # images in a timed step where there is no GPU; times are scaled to the real batch
COLUMNS = {"run": "run", "state": "state", "steps": "steps", "step": "s/step", "hours": "hours"}
FORMATS = {"steps": ",", "step": ".4f", "hours": ".2f"}


def print_plan(runs: Mapping[str, Planned], scale: Scale) -> dict[str, Any]:
    """Print and return what is not done: steps, their measured time, and hours on this device.

    Returns:
        ``hours``, and ``runs``: run; state; steps of one device with the configured batch; step,
        seconds of one, the mean over both phases; hours. None for what trains nothing.
    """
    steps: dict[Any, float] = {}
    sizes: dict[str, tuple[int, int]] = {}
    rows = []
    for key, run in runs.items():
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"run": key, "state": run.state}
        if run.cfg is not None and run.state != "done":
            data = str(run.cfg.data.get("root"))
            if data not in sizes:
                sizes[data] = data_size(run.cfg, scale)
            images, classes = sizes[data]
            per_epoch = images // int(run.cfg.data.batch_size)
            seconds = per_epoch * seconds_per_step(run.cfg, classes, steps)
            row["steps"] = per_epoch * int(run.cfg.trainer.max_epochs)
            row["step"] = seconds / row["steps"] if row["steps"] else None
            row["hours"] = seconds / 3600
        rows.append(row)
    hours = sum(row["hours"] or 0.0 for row in rows)
    caption = (
        f"{hours:.2f} device-hours of training steps alone, measured now on noise with the "
        "configured batch (without a GPU, on 2 images and scaled); validation and reading of "
        "images come on top"
    )
    print_table(rows, FORMATS, COLUMNS, title=f"What would run on {machine()}", caption=caption)
    return {"runs": rows, "hours": hours}


def data_size(cfg: DictConfig, scale: Scale) -> tuple[int, int]:
    """Training images and classes: as the data says, or as the scale does where it is missing."""
    root = cfg.data.get("root")
    if root is not None and not Path(str(root)).expanduser().is_dir() and scale.train_images:
        return scale.train_images, scale.num_classes or 1000
    data = make_data(plain(cfg.data))
    data.setup()
    return len(data.train_images), len(data.classes)


def seconds_per_step(cfg: DictConfig, num_classes: int, known: dict[Any, float]) -> float:
    """Seconds of one training step in every epoch, summed over the epochs.

    Args:
        cfg: of a training.
        num_classes: outputs of the head.
        known: seconds of steps that were measured before, by what distinguishes them; extended.
    """
    device, cfg = find_device("auto"), cfg.copy()
    cfg.init_from, cfg.pretrained = None, False
    cfg.ckpt_path = "auto"  # for a teacher, any weights do
    cfg.compile = cfg.compile and device.type == "cuda"  # a CPU would compile for minutes
    module: Any = build_module(cfg, [str(i) for i in range(num_classes)])
    module.to(device).train()
    module.log = lambda *_, **__: None  # there is no trainer to log to
    if module.teacher is not None:
        module.teacher.to(device)
    epochs, whole = int(cfg.trainer.max_epochs), 0  # whole: epochs of phase one
    if module.num_passes > 1:
        whole = min(module.selection_epoch, epochs)
    groups = ("backbone", "reducer", "schedule", "image_size", "trainer")
    total = 0.0
    for phase_one, count in ((True, whole), (False, epochs - whole)):
        macs = "whole image" if phase_one else count_macs(module.model)
        key = (macs, cfg.data.batch_size, *(str(plain(cfg[group])) for group in groups))
        if count and key not in known:
            module.selection_epoch = int(phase_one)
            known[key] = _time_step(module, cfg, device)
        total += count * known.get(key, 0.0)
    return total


def _time_step(module: Any, cfg: DictConfig, device: torch.device) -> float:
    """Median seconds of forward, loss, backward and optimizer step on noise."""
    wanted, size = int(cfg.data.batch_size), int(cfg.image_size)
    batch = wanted if device.type == "cuda" else min(wanted, CPU_BATCH)
    half = "bf16" in str(trainer_settings(cfg)["precision"])
    images = torch.randn(batch, 3, size, size, device=device)
    targets = torch.arange(batch, device=device) % module.num_classes
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=0.0)
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss: Tensor = module.training_step(Batch(images, downsample(images), targets), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[REPEATS // 2] * wanted / batch

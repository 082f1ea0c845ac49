"""What `reproduce` would run, and how long it would take here: real steps, nothing trained."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from lfvit.commands.reproduce_runs import Planned, is_made
from lfvit.commands.train import build_module
from lfvit.data.batches import Batch
from lfvit.models.tokens import downsample
from lfvit.results.artifacts.settings import Scale
from lfvit.runs.models import build_model
from lfvit.runs.provenance import machine
from lfvit.runs.trainers import find_device, trainer_settings
from lfvit.utils.markdown import print_table

CPU_PIXELS = 2 * 224**2  # in a timed step where there is no GPU; times are scaled to the real batch
COLUMNS = {"run": "run", "state": "state", "steps": "steps", "step": "s/step", "hours": "hours"}
FORMATS = {"steps": ",", "step": ".4f", "hours": ".2f"}


def print_plan(runs: Mapping[str, Planned], scale: Scale) -> dict[str, Any]:
    """Print and return what is not done: steps, their measured time, and hours on this device.

    Returns:
        ``hours``, and ``runs``: run; state; steps of one device with the configured batch; step,
        seconds of one, the mean over both phases; hours. None for what trains nothing.
    """
    known: dict[str, float] = {}  # seconds of a step, by what it trains
    rows = []
    for key, run in runs.items():
        done = is_made(run.folder)
        begun = (run.folder / "run.json").exists()
        state = "done" if done else "begun" if begun else "to do"
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "run": key, "state": state}
        if run.cfg is not None and not done:
            size: Any = run.cfg.data if scale.generated else scale
            teacher = None if run.teacher is None else runs[run.teacher].cfg
            row["steps"] = int(run.cfg.trainer.max_epochs) * _steps(run.cfg, size.train_images)
            row["step"] = seconds_per_step(run.cfg, size.num_classes, known, teacher)
            row["hours"] = row["steps"] * row["step"] / 3600
        rows.append(row)
    hours = sum(row["hours"] or 0.0 for row in rows)
    caption = (
        f"{hours:.2f} device-hours of training steps alone, measured now on noise with the "
        "configured batch (without a GPU, on a few images and scaled); validation and reading of "
        "images come on top"
    )
    print_table(rows, FORMATS, COLUMNS, title=f"What would run on {machine()}", caption=caption)
    return {"runs": rows, "hours": hours}


def _steps(cfg: DictConfig, images: int) -> int:
    """Batches of an epoch; trainer.limit_train_batches is their number or, as 0.1, their share."""
    batches, limit = images // int(cfg.data.batch_size), cfg.trainer.get("limit_train_batches")
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, int(limit))


def seconds_per_step(
    cfg: DictConfig, num_classes: int, known: dict[str, float], teacher: DictConfig | None = None
) -> float:
    """Seconds of a training step, the mean over all epochs; `known` steps are not timed again.

    teacher: the config of the one whose checkpoint the config names, which need not be there.
    """
    device, cfg = find_device("auto"), cfg.copy()
    cfg.init_from, cfg.pretrained, cfg.seed = None, False, 0
    cfg.ckpt_path = "auto"  # for a teacher, any weights do
    cfg.compile = cfg.compile and device.type == "cuda"  # a CPU would compile for minutes
    cfg.name = cfg.run_dir = ""
    if teacher is not None:
        cfg.schedule.teacher = None
    module: Any = build_module(cfg, [str(i) for i in range(num_classes)])
    if teacher is not None:
        module.teacher = build_model(teacher, num_classes).eval()
    epochs = int(cfg.trainer.max_epochs)
    first = min(module.selection_epoch, epochs) if module.num_passes > 1 else 0
    # in phase one, the step is the same whatever the second pass will select
    methods, cfg.method = (f"{module.num_passes} passes", str(cfg.method)), None
    total = 0.0
    for phase_one, count, method in zip(
        (True, False), (first, epochs - first), methods, strict=True
    ):
        key = f"{method} {cfg}"
        if count and key not in known:
            module.selection_epoch = int(phase_one)
            known[key] = _time_step(module, cfg, device)
        total += count * known.get(key, 0.0)
    return total / epochs


def _time_step(module: Any, cfg: DictConfig, device: torch.device) -> float:
    """Median seconds of forward, loss, backward and optimizer step on noise."""
    module.to(device).train()
    module.log = lambda *_, **__: None  # there is no trainer to log to
    if module.teacher is not None:
        module.teacher.to(device)
    wanted, size = int(cfg.data.batch_size), int(cfg.image_size)
    batch = wanted if device.type == "cuda" else min(wanted, max(1, CPU_PIXELS // size**2))
    half = "bf16" in str(trainer_settings(cfg)["precision"])
    images = torch.randn(batch, 3, size, size, device=device)
    targets = torch.arange(batch, device=device) % module.num_classes
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=0.0)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = module.training_step(Batch(images, downsample(images), targets), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times[1:]) * wanted / batch

"""What benchmark.py times: models at shares of exits, training steps, the steps of two passes."""

import json
import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn.functional import cross_entropy

from lfvit.data.datamodule import normalize
from lfvit.measure.costs import count_macs, expected_gmacs
from lfvit.measure.schemas import read_evaluation
from lfvit.measure.throughput import (
    parts,
    peak_memory,
    quantile,
    spread,
    threshold_for,
    time_interleaved,
)
from lfvit.models.two_pass import TwoPassViT
from lfvit.models.zoo import locate
from lfvit.results.zoo import read_card
from lfvit.runs.setup import Trained, build_model, open_data
from lfvit.training.losses import pass_losses
from lfvit.utils.validation import plain

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


class Case(NamedTuple):
    """One row: what is timed, and the facts known before timing."""

    run: Callable[[], object]
    facts: dict[str, Any]


class Setting(NamedTuple):
    """What all models of one comparison have in common."""

    task: str  # "inference" or "training"
    precision: str
    compiled: bool
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


def time_setting(
    cfg: DictConfig, setting: Setting, trained: Trained | None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one batch size after the other."""
    models = build_all(cfg, trained)
    if trained is not None and setting.task == "inference":
        trained = trained._replace(model=deepcopy(trained.model))  # another precision comes later
        models["trained"] = trained.model
    for model in models.values():
        model.train(setting.task == "training").to(setting.device, setting.dtype)
        if setting.compiled:
            compile_model(model, setting.task, cfg.compile_mode)
    for batch_size in cfg.batch_sizes:
        images = _noise(cfg, trained, batch_size, setting.device, setting.dtype)
        try:
            cases: dict[str, Case] = {}
            for name, model in models.items():
                if setting.task == "training":
                    cases[name] = _training_case(cfg, name, model, images)
                elif trained is not None and model is trained.model:
                    cases[name] = _trained_case(cfg, trained, batch_size, setting)
                else:
                    cases |= _cases(cfg, name, model, images)
            seconds = time_interleaved(
                {name: case.run for name, case in cases.items()},
                warmup=cfg.warmup,
                repeats=cfg.repeats,
                device=setting.device,
                gradients=setting.task == "training",
            )
            memory = {name: peak_memory(case.run, setting.device) for name, case in cases.items()}
        except torch.cuda.OutOfMemoryError:
            log.warning("%s: a batch of %d is too large for the GPU", setting.task, batch_size)
            return
        yield _rows(setting, cases, seconds, memory, batch_size)


def _image_size(cfg: DictConfig, trained: Trained | None) -> int:
    return cfg.image_size if trained is None else trained.record["image_size"]


def _noise(
    cfg: DictConfig, trained: Trained | None, count: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    side = _image_size(cfg, trained)
    torch.manual_seed(cfg.seed)
    return torch.randn(count, 3, side, side).to(device, dtype)


def build_all(cfg: DictConfig, trained: Trained | None) -> dict[str, Any]:
    torch.manual_seed(cfg.seed)
    return {str(name): _build(cfg, plain(cfg.models[name]), trained) for name in cfg.models}


def _build(cfg: DictConfig, method: dict[str, Any], trained: Trained | None) -> Any:
    """A model with random weights, of the size of the trained one if there is one."""
    backbone = plain(cfg.backbone) if trained is None else trained.record["backbone"]
    size = _image_size(cfg, trained)
    classes = cfg.num_classes if trained is None else len(trained.record["classes"])
    settings: dict[str, Any] = {"method": dict(method), "backbone": backbone, "image_size": size}
    if "reducer" in method:
        settings["reducer"] = settings["method"].pop("reducer")
    return build_model(settings, classes)


def compile_model(model: nn.Module, task: str = "inference", mode: str = "default") -> None:
    """Compile a model in place for "inference" or "training"."""
    if isinstance(model, TwoPassViT) and task == "inference":
        model.compile_passes(mode=mode)  # one graph per pass; what lies between depends on data
    else:
        model.compile(mode=mode)


def _cases(cfg: DictConfig, name: str, model: nn.Module, images: torch.Tensor) -> dict[str, Case]:
    """A one-pass model is one case, a two-pass model one for every share of images that exits."""
    settings = json.dumps(plain(cfg.models[name]))
    facts = {"model": name, "settings": settings, "exits": None, "exit_fraction": None}
    if not isinstance(model, TwoPassViT):
        whole = {**facts, "top1": None, "gmacs": count_macs(model) / 1e9}
        return {name: Case(partial(model, images), whole)}
    cases = {}
    for fraction in cfg.exit_fractions:
        threshold = threshold_for(model, images, fraction)
        case = _early_exit(model, images, threshold, {**facts, "exits": "stated", "top1": None})
        cases[f"{name} {case.facts['exit_fraction']:.2f}"] = case
    return cases


def _early_exit(
    model: TwoPassViT, images: torch.Tensor, threshold: float, facts: dict[str, Any]
) -> Case:
    with torch.inference_mode():
        exits = model.infer(images, threshold).exited.double().mean().item()
    macs = count_macs(model, "first"), count_macs(model, "second")
    facts = {**facts, "exit_fraction": exits, "gmacs": expected_gmacs(*macs, exits)}
    return Case(partial(model.infer, images, threshold), facts)


def _trained_case(cfg: DictConfig, trained: Trained, batch_size: int, setting: Setting) -> Case:
    """The trained model on its own validation images, which decide how many exit."""
    samples = open_data(cfg, trained.record).some_validation_samples(batch_size)
    pixels = normalize(torch.stack([sample.pixels for sample in samples]))
    threshold = trained.record["threshold"]
    facts = {
        "model": "trained",
        "settings": json.dumps({**trained.record["method"], "ckpt_path": str(cfg.ckpt_path)}),
        "exits": f"measured at eta={threshold:g}",
        "top1": _known_top1(cfg.ckpt_path, threshold),
    }
    model: Any = trained.model
    return _early_exit(model, pixels.to(setting.device, setting.dtype), threshold, facts)


def _known_top1(source: str, threshold: float) -> float | None:
    """What an evaluation in the run directory of a checkpoint says about this threshold.

    Of a model in the zoo, what its card says.
    """
    if known := read_card(source):
        evaluation = known["evaluation"]
        points = [*evaluation.get("operating_points", []), *evaluation["curve"]]
    else:
        checkpoint, points = locate(source), []
        for path in sorted(checkpoint.parent.parent.rglob("evaluate.json")):
            found = read_evaluation(path)
            if Path(found.checkpoint).name == checkpoint.name:
                points += [point.model_dump() for point in (found.configured, *found.curve)]
    for point in points:
        if point.get("threshold") is not None and abs(point["threshold"] - threshold) < 1e-9:
            return float(point["top1"])
    return None


def _training_case(cfg: DictConfig, name: str, model: nn.Module, images: torch.Tensor) -> Case:
    """Forward, loss, backward and optimizer step; every image goes through both passes."""
    targets = torch.arange(len(images), device=images.device) % cfg.num_classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the same work, the weights stay

    def step() -> None:
        out = model(images)
        if isinstance(model, TwoPassViT):
            loss = sum(pass_losses(out.logits, targets))
        else:
            loss = cross_entropy(out, targets)
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    facts = {
        "model": name,
        "settings": json.dumps(plain(cfg.models[name])),
        "exits": None,
        "exit_fraction": None,
        "top1": None,
        "gmacs": count_macs(model) / 1e9,
    }
    return Case(step, facts)


def _rows(
    setting: Setting,
    cases: dict[str, Case],
    seconds: dict[str, list[float]],
    memory: dict[str, float | None],
    batch_size: int,
) -> list[dict[str, Any]]:
    rows = []
    base_name = next(iter(cases))  # the first model listed is what the others are compared with
    base_time, base_gmacs = spread(seconds[base_name])["median"], cases[base_name].facts["gmacs"]
    for name, case in cases.items():
        times = spread(seconds[name])
        measured, ideal = base_time / times["median"], base_gmacs / case.facts["gmacs"]
        rows.append(
            {
                "task": setting.task,
                **case.facts,
                "precision": setting.precision,
                "compiled": setting.compiled,
                "batch_size": batch_size,
                "best_batch": None,
                "images_per_second": batch_size / times["median"],
                "images_per_second_slowest": batch_size / times["slowest"],
                "images_per_second_fastest": batch_size / times["fastest"],
                "latency_ms_p50": 1e3 * times["median"],
                "latency_ms_p95": 1e3 * quantile(seconds[name], 0.95),
                "compared_with": base_name,
                "measured_speedup": measured,
                "ideal_speedup": ideal,
                "share_of_ideal": measured / ideal,
                "repeats": len(seconds[name]),
                "peak_memory_mb": memory[name],
            }
        )
    return rows


def mark_best(rows: list[dict[str, Any]]) -> None:
    """Of every model and setting, the batch size with the highest throughput so far."""
    best: dict[Any, dict[str, Any]] = {}
    keys = ("task", "model", "precision", "compiled")
    for row in rows:
        exits = row["exit_fraction"] if row["exits"] == "stated" else row["exits"]
        group = (*(row[key] for key in keys), exits)
        row["best_batch"] = False
        if group not in best or row["images_per_second"] > best[group]["images_per_second"]:
            best[group] = row
    for row in best.values():
        row["best_batch"] = True


def time_parts(
    cfg: DictConfig, trained: Trained | None, device: torch.device
) -> list[dict[str, Any]]:
    """What the steps of two passes cost, in fp32 and not compiled, at the largest batch size."""
    batch_size = max(cfg.batch_sizes)
    images = _noise(cfg, trained, batch_size, device, torch.float32)
    rows = []
    for name, model in build_all(cfg, trained).items():
        if not isinstance(model, TwoPassViT):
            continue
        model.eval().to(device)
        seconds = time_interleaved(
            parts(model, images), warmup=cfg.warmup, repeats=cfg.repeats, device=device
        )
        whole = spread(seconds["both passes"])["median"]
        rows += [
            {
                "model": name,
                "part": part,
                "batch_size": batch_size,
                "milliseconds": 1e3 * spread(times)["median"],
                "share": spread(times)["median"] / whole,
            }
            for part, times in seconds.items()
        ]
    return rows

"""`benchmark(cfg)`: throughput and latency of one-pass and two-pass models, in one run."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from lfvit.checks import check_choice, check_range, check_whole
from lfvit.commands.setup import Trained, build_model, find_device, load_trained, open_data
from lfvit.data.datamodule import normalise
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs, expected_gmacs
from lfvit.measure.throughput import (
    peak_memory,
    quantile,
    spread,
    threshold_for,
    time_interleaved,
)
from lfvit.models.two_stage import TwoStageViT
from lfvit.report.plots import plot_speed
from lfvit.runs import environment, plain, start_run, write_json
from lfvit.training.losses import two_stage_losses

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """One row: what is timed, and the facts known before timing."""

    run: Callable[[], object]
    facts: dict[str, Any]


def benchmark(cfg: DictConfig) -> list[dict[str, Any]]:
    """Time every model at every batch size and exit fraction.

    Writes benchmark.csv, benchmark.json and benchmark.png. Weights are random and inputs are noise:
    speed depends on neither, because the share of images that exits is stated, not left to the
    confidences. With ``ckpt_path``, a trained two-pass model runs on its own validation images as
    well, at its own threshold. With ``training``, a training step is timed in the same way.

    Returns:
        One row per task, model and setting.

    Raises:
        ConfigError: a setting that cannot work.
    """
    check_choice("precision", cfg.precision, PRECISIONS)
    check_whole("repeats", cfg.repeats, 1)
    for name in ("exit_fractions", "batch_sizes"):
        if not isinstance(cfg[name], ListConfig):
            raise ConfigError(f"{name}={cfg[name]!r} must be a list, such as [{cfg[name]}]")
    for fraction in cfg.exit_fractions:
        check_range("exit_fractions", fraction, 0, 1)
    for batch_size in cfg.batch_sizes:
        check_whole("batch_sizes", batch_size, 1)
    if cfg.threads is not None:
        check_whole("threads", cfg.threads, 1)
        torch.set_num_threads(cfg.threads)
    device, dtype = find_device(cfg.accelerator), PRECISIONS[cfg.precision]
    torch.manual_seed(cfg.seed)
    trained = None if cfg.ckpt_path is None else _trained(cfg)
    models = {name: _build(cfg, plain(cfg.models[name]), trained) for name in cfg.models}
    run_dir = start_run(cfg)
    rows: list[dict[str, Any]] = []
    for task in ("inference", "training") if cfg.training else ("inference",):
        for model in models.values():
            model.train(task == "training").to(device, dtype)
            if cfg.compile:
                _compile(model, task)
        if trained is not None:
            trained.model.to(device, dtype)
        for batch_size in cfg.batch_sizes:
            size = batch_size, 3, _image_size(cfg, trained), _image_size(cfg, trained)
            images = torch.randn(size, device=device, dtype=dtype)
            cases: dict[str, Case] = {}
            for name, model in models.items():
                if task == "training":
                    cases[name] = _training_case(cfg, name, model, images)
                else:
                    cases |= _cases(cfg, name, model, images)
            if trained is not None and task == "inference":
                cases["trained"] = _trained_case(cfg, trained, batch_size, device, dtype)
            seconds = time_interleaved(
                {name: case.run for name, case in cases.items()},
                warmup=cfg.warmup,
                repeats=cfg.repeats,
                device=device,
                gradients=task == "training",
            )
            memory = {name: peak_memory(case.run, device) for name, case in cases.items()}
            rows += _rows(task, cases, seconds, memory, batch_size)
            _write(run_dir, cfg, rows)  # after every batch size: an interrupted run keeps its rows
    plot_speed(rows, run_dir / "benchmark.png")
    _print(rows, run_dir)
    return rows


def _trained(cfg: DictConfig) -> Trained:
    trained = load_trained(cfg.ckpt_path, {"threshold": cfg.threshold})
    if not isinstance(trained.model, TwoStageViT):
        raise ConfigError(
            f"ckpt_path={cfg.ckpt_path} is a one-pass model, which has no exits to measure; pass a "
            "checkpoint of lf_vit or cf_vit"
        )
    return trained


def _image_size(cfg: DictConfig, trained: Trained | None) -> int:
    return cfg.image_size if trained is None else trained.record["image_size"]


def _build(cfg: DictConfig, method: dict[str, Any], trained: Trained | None) -> Any:
    """A model with random weights, of the size of the trained one if there is one."""
    backbone = plain(cfg.backbone) if trained is None else trained.record["backbone"]
    size = _image_size(cfg, trained)
    classes = cfg.num_classes if trained is None else len(trained.record["classes"])
    return build_model({"method": method, "backbone": backbone, "image_size": size}, classes)


def _compile(model: nn.Module, task: str) -> None:
    if isinstance(model, TwoStageViT) and task == "inference":
        model.compile_passes()  # one graph per pass; what lies between depends on data
    else:
        model.compile()


def _cases(cfg: DictConfig, name: str, model: nn.Module, images: torch.Tensor) -> dict[str, Case]:
    """A one-pass model is one case, a two-pass model one for every share of images that exits."""
    settings = json.dumps(plain(cfg.models[name]))
    facts = {"model": name, "settings": settings, "exits": None, "exit_fraction": None}
    if not isinstance(model, TwoStageViT):
        return {name: Case(partial(model, images), {**facts, "gmacs": count_macs(model) / 1e9})}
    cases = {}
    for fraction in cfg.exit_fractions:
        threshold = threshold_for(model, images, fraction)
        case = _early_exit(model, images, threshold, {**facts, "exits": "stated"})
        cases[f"{name} {case.facts['exit_fraction']:.2f}"] = case
    return cases


def _early_exit(
    model: TwoStageViT, images: torch.Tensor, threshold: float, facts: dict[str, Any]
) -> Case:
    with torch.inference_mode():
        exits = model.infer(images, threshold).exited.double().mean().item()
    macs = count_macs(model, "first"), count_macs(model, "second")
    facts = {**facts, "exit_fraction": exits, "gmacs": expected_gmacs(*macs, exits)}
    return Case(partial(model.infer, images, threshold), facts)


def _trained_case(
    cfg: DictConfig, trained: Trained, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """The trained model on its own validation images, which decide how many exit."""
    samples = open_data(cfg, trained.record).some_validation_samples(batch_size)
    images = normalise(torch.stack([sample.pixels for sample in samples])).to(device, dtype)
    facts = {
        "model": "trained",
        "settings": json.dumps({**trained.record["method"], "ckpt_path": str(cfg.ckpt_path)}),
        "exits": f"measured at eta={trained.record['threshold']:g}",
    }
    model: Any = trained.model
    return _early_exit(model, images, trained.record["threshold"], facts)


def _training_case(cfg: DictConfig, name: str, model: nn.Module, images: torch.Tensor) -> Case:
    """Forward, loss, backward and optimizer step; every image goes through both passes."""
    targets = torch.arange(len(images), device=images.device) % cfg.num_classes
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # the same work, the weights stay

    def step() -> None:
        out = model(images)
        if isinstance(model, TwoStageViT):
            loss = sum(two_stage_losses(out.first_logits, out.second_logits, targets))
        else:
            loss = cross_entropy(out, targets)
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    settings = json.dumps(plain(cfg.models[name]))
    macs = {"exits": None, "exit_fraction": None, "gmacs": count_macs(model) / 1e9}
    return Case(step, {"model": name, "settings": settings, **macs})


def _rows(
    task: str,
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
                "task": task,
                **case.facts,
                "batch_size": batch_size,
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


def _write(run_dir: Path, cfg: DictConfig, rows: list[dict[str, Any]]) -> None:
    about = environment()
    write_json(run_dir / "benchmark.json", {"environment": about, "rows": rows})
    common = {
        "backbone": json.dumps(plain(cfg.backbone)),
        "image_size": cfg.image_size,
        "precision": cfg.precision,
        "compiled": cfg.compile,
        "machine": about["machine"],
        "threads": about["threads"],
        "torch": about["packages"]["torch"],
        "timm": about["packages"]["timm"],
        "commit": about["commit"],
    }
    with (run_dir / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *common])
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


def _print(rows: list[dict[str, Any]], run_dir: Path) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        table = Table(title=f"{task.capitalize()}, medians of interleaved repetitions")
        for name in ("model", "exits", "batch", "GMACs", "images/s", "speed-up", "ideal", "of it"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for row in rows:
            if row["task"] != task:
                continue
            exits = row["exit_fraction"]
            table.add_row(
                row["model"],
                "" if exits is None else f"{exits:.2f}",
                str(row["batch_size"]),
                f"{row['gmacs']:.3f}",
                f"{row['images_per_second']:.1f}",
                f"{row['measured_speedup']:.2f}x",
                f"{row['ideal_speedup']:.2f}x",
                f"{100 * row['share_of_ideal']:.0f} %",
            )
        Console().print(table)
    print(f"written to {run_dir}")

"""`benchmark(cfg)`: throughput and latency of one-pass and two-pass models, in one run."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from lfvit.checks import check_choice, check_range, check_whole
from lfvit.commands.setup import build_model, find_device
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs, expected_gmacs
from lfvit.measure.throughput import quantile, spread, threshold_for, time_interleaved
from lfvit.models.two_stage import TwoStageViT
from lfvit.runs import environment, plain, start_run, write_json

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """One row: what is timed, and the facts known before timing."""

    run: Callable[[], object]
    facts: dict[str, Any]


def benchmark(cfg: DictConfig) -> list[dict[str, Any]]:
    """Time every model at every batch size and exit fraction; writes benchmark.csv and .json.

    Weights are random and inputs are noise: speed depends on neither, because the share of images
    that exits is stated, not left to the confidences.

    Returns:
        One row per model and setting.

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
    models = {name: _build(cfg, name, device, dtype) for name in cfg.models}
    run_dir = start_run(cfg)
    rows = []
    for batch_size in cfg.batch_sizes:
        shape = (batch_size, 3, cfg.image_size, cfg.image_size)
        images = torch.randn(shape, device=device, dtype=dtype)
        cases = {
            name: case
            for model_name, model in models.items()
            for name, case in _cases(model_name, model, images, cfg.exit_fractions).items()
        }
        seconds = time_interleaved(
            {name: case.run for name, case in cases.items()},
            warmup=cfg.warmup,
            repeats=cfg.repeats,
            device=device,
        )
        rows += _rows(cases, seconds, batch_size)
        _write(run_dir, cfg, rows)  # after every batch size: an interrupted run keeps its rows
    _print(rows, run_dir)
    return rows


def _build(cfg: DictConfig, name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    settings = {
        "method": plain(cfg.models[name]),
        "backbone": plain(cfg.backbone),
        "image_size": cfg.image_size,
    }
    model = build_model(settings, cfg.num_classes).eval().to(device, dtype)
    if not cfg.compile:
        return model
    if isinstance(model, TwoStageViT):  # one graph per pass; what lies between depends on data
        model.compile_passes()
        return model
    model.compile()
    return model


def _cases(
    name: str, model: nn.Module, images: torch.Tensor, fractions: list[float]
) -> dict[str, Case]:
    """A one-pass model is one case, a two-pass model one for every share of images that exits."""
    if not isinstance(model, TwoStageViT):
        facts = {"model": name, "exit_fraction": None, "gmacs": count_macs(model) / 1e9}
        return {name: Case(partial(model, images), facts)}
    first, second = count_macs(model, "first"), count_macs(model, "second")
    cases = {}
    for fraction in fractions:
        threshold = threshold_for(model, images, fraction)
        with torch.inference_mode():
            actual = model.infer(images, threshold).exited.double().mean().item()
        label = f"{name} {actual:.2f}"
        facts = {
            "model": name,
            "exit_fraction": actual,
            "gmacs": expected_gmacs(first, second, actual),
        }
        cases[label] = Case(partial(model.infer, images, threshold), facts)
    return cases


def _rows(
    cases: dict[str, Case], seconds: dict[str, list[float]], batch_size: int
) -> list[dict[str, Any]]:
    rows = []
    base_name = next(iter(cases))  # the first model listed is what the others are compared with
    base_time, base_gmacs = spread(seconds[base_name])["median"], cases[base_name].facts["gmacs"]
    for name, case in cases.items():
        times = spread(seconds[name])
        measured, ideal = base_time / times["median"], base_gmacs / case.facts["gmacs"]
        rows.append(
            {
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
            }
        )
    return rows


def _write(run_dir: Path, cfg: DictConfig, rows: list[dict[str, Any]]) -> None:
    about = environment()
    write_json(run_dir / "benchmark.json", {"environment": about, "rows": rows})
    common = {
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
    table = Table(title="Throughput, medians of interleaved repetitions")
    for name in ("model", "exits", "batch", "GMACs", "images/s", "speed-up", "ideal"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        exits = row["exit_fraction"]
        table.add_row(
            row["model"],
            "" if exits is None else f"{exits:.2f}",
            str(row["batch_size"]),
            f"{row['gmacs']:.3f}",
            f"{row['images_per_second']:.1f}",
            f"{row['measured_speedup']:.2f}x",
            f"{row['ideal_speedup']:.2f}x",
        )
    Console().print(table)
    print(f"written to {run_dir}")

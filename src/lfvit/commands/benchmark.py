"""`benchmark(cfg)`: throughput and latency of one-pass and two-pass models, in one run."""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from lfvit.commands.benchmark_cases import (
    COMPILE_MODES,
    PRECISIONS,
    Setting,
    build_all,
    mark_best,
    time_parts,
    time_setting,
)
from lfvit.errors import ConfigError
from lfvit.models.two_pass import TwoPassViT
from lfvit.results.speed import print_speed, write_speed
from lfvit.runs.devices import find_device
from lfvit.runs.directory import start_run
from lfvit.runs.provenance import environment
from lfvit.runs.setup import Trained, load_trained
from lfvit.tracking.loggers import summarise, tracked
from lfvit.tracking.media import log_table
from lfvit.utils.validation import check_choice, check_range, check_switch, check_whole, plain


def benchmark(cfg: DictConfig) -> list[dict[str, Any]]:
    """Time every model in every precision, compiled or not, at every batch size and exit fraction.

    Writes benchmark.csv, .json, .md and .png. Weights are random and inputs are noise: speed
    depends on neither, because the share of images that exits is stated, not left to the
    confidences. With ``ckpt_path``, a trained two-pass model runs on its own validation images as
    well, at its own threshold. With ``training``, a training step is timed in the same way; with
    ``parts``, the steps of two passes.

    Returns:
        One row per task, model and setting.

    Raises:
        ConfigError: a setting that cannot work.
    """
    precisions, compiled = _check(cfg)
    find_device(cfg.accelerator)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    trained = None if cfg.ckpt_path is None else _trained(cfg)
    build_all(cfg, trained)  # a wrong setting of the last model is found before the first is timed
    run_dir = start_run(cfg)
    with tracked(cfg, "benchmark", trained.record if trained else None) as loggers:
        results = Results(run_dir, cfg)
        _time_models(cfg, precisions, compiled, trained, results)
        if cfg.parts:
            results.parts = time_parts(cfg, trained, find_device(cfg.accelerator))
        results.write()
        log_table(loggers, "benchmark", results.rows)
        summarise(loggers, _speeds(results.rows))
    results.print()
    print(f"written to {run_dir}")
    return results.rows


def _speeds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Images per second of each row for the loggers, by task, model and setting."""
    speeds = {}
    for row in rows:
        setting = f"{row['precision']}{'_compiled' if row['compiled'] else ''}"
        name = f"{row['task']}/{row['model']}/{setting}/batch_{row['batch_size']}"
        if row["exit_fraction"] is not None:
            name += f"/exits_{row['exit_fraction']:.2f}"
        speeds[f"{name}/images_per_second"] = float(row["images_per_second"])
    return speeds


@dataclass
class Results:
    """What has been timed so far; written again and again, so that an interrupted run keeps it."""

    run_dir: Path
    cfg: DictConfig
    rows: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        settings = {
            "backbone": json.dumps(plain(self.cfg.backbone)),
            "image_size": self.cfg.image_size,
            "compile_mode": self.cfg.compile_mode,
        }
        about = {"settings": settings, "environment": environment()}
        write_speed(self.run_dir, about, self.rows, self.parts)

    def print(self) -> None:
        print_speed(self.rows, self.parts)


def _time_models(
    cfg: DictConfig,
    precisions: list[str],
    compiled: list[bool],
    trained: Trained | None,
    results: Results,
) -> None:
    device = find_device(cfg.accelerator)
    tasks = ("inference", "training") if cfg.training else ("inference",)
    for setting in (Setting(t, p, c, device) for t, p, c in product(tasks, precisions, compiled)):
        for timed in time_setting(cfg, setting, trained):
            results.rows += timed
            mark_best(results.rows)
            results.write()


def _check(cfg: DictConfig) -> tuple[list[str], list[bool]]:
    """Precisions, and whether compiled: one or several of each."""
    precisions, compiled = (
        list(cfg[name]) if isinstance(cfg[name], ListConfig) else [cfg[name]]
        for name in ("precision", "compile")
    )
    for precision in precisions:
        check_choice("precision", precision, PRECISIONS)
    for switch in compiled:
        check_switch("compile", switch)
    check_choice("compile_mode", cfg.compile_mode, COMPILE_MODES)
    check_whole("repeats", cfg.repeats, 1)
    check_whole("warmup", cfg.warmup, 0)
    for name in ("exit_fractions", "batch_sizes"):
        if not isinstance(cfg[name], ListConfig) or not len(cfg[name]):
            raise ConfigError(f"{name}={cfg[name]!r} must be a list, such as [{cfg[name]}]")
    for fraction in cfg.exit_fractions:
        check_range("exit_fractions", fraction, 0, 1)
    for batch_size in cfg.batch_sizes:
        check_whole("batch_sizes", batch_size, 1)
    if cfg.threads is not None:
        check_whole("threads", cfg.threads, 1)
    return precisions, compiled


def _trained(cfg: DictConfig) -> Trained:
    trained = load_trained(cfg.ckpt_path, {"threshold": cfg.threshold})
    if not isinstance(trained.model, TwoPassViT):
        raise ConfigError(
            f"ckpt_path={cfg.ckpt_path} is a one-pass model, which has no exits to measure; pass a "
            "checkpoint of lf_vit or cf_vit"
        )
    return trained

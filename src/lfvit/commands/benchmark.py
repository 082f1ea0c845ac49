"""`benchmark(cfg)`: throughput and latency of models with one and several passes, in one run."""

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lfvit.data.augment import normalize
from lfvit.measure.costs import pass_macs
from lfvit.measure.settings import BenchmarkSettings
from lfvit.measure.throughput import (
    PRECISIONS,
    compile_model,
    peak_memory,
    threshold_for,
    time_interleaved,
)
from lfvit.models.blocks import trainable_attention
from lfvit.models.passes import early_exit, forward_passes
from lfvit.results.speed import print_speed, write_speed
from lfvit.runs.datasets import open_data
from lfvit.runs.directory import start_run
from lfvit.runs.models import Trained, build_model, load_trained
from lfvit.runs.provenance import environment
from lfvit.runs.record import said_preprocessing
from lfvit.runs.trainers import find_device, has_bfloat16
from lfvit.tracking.loggers import log_table, tracked
from lfvit.training.losses import pass_losses
from lfvit.utils.validation import plain, validate

log = logging.getLogger(__name__)

Row = dict[str, Any]


Case = tuple[Callable[[], object], Row]
"""What is timed, and the columns of its row that are known before."""


def benchmark(cfg: DictConfig) -> list[Row]:
    """Time every model in every precision, compiled or not, at every batch size and exit fraction.

    Writes benchmark.csv, .json and .md. Weights are random and inputs are noise: speed
    depends on neither, because the share of images that exits is stated. With ``ckpt_path``, a
    trained model runs on its validation images as well, at its threshold.

    Returns:
        One row per model and setting.

    Raises:
        LFViTError: a setting or the checkpoint is at fault.
    """
    values = {name: plain(cfg[name]) for name in BenchmarkSettings.model_fields}
    settings = validate(BenchmarkSettings, values)
    device = find_device(cfg.accelerator)
    auto = "bf16" if has_bfloat16(device.type) else "fp32"
    precisions = dict.fromkeys(auto if p == "auto" else p for p in settings.precision)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    trained = None
    if cfg.ckpt_path is not None:
        trained = load_trained(
            cfg.ckpt_path, {"threshold": cfg.threshold} | said_preprocessing(cfg)
        )
    # before anything is timed: a mistake in the last model is reported now
    macs = {name: pass_macs(model) for name, model in build_models(cfg, trained).items()}
    run_dir = start_run(cfg)
    shared = {name: cfg[name] for name in ("image_size", "compile_mode")}
    shared["backbone"] = json.dumps(plain(cfg.backbone))
    about = {"settings": shared, "environment": environment()}
    rows: list[Row] = []
    with tracked(cfg, "benchmark", trained.record if trained else None) as loggers:
        tasks = ("inference", "training")[: 1 + settings.training]
        for task, precision, compiled in product(tasks, precisions, settings.compile):
            models, training = build_models(cfg, trained), task == "training"
            if training:
                models.pop("trained", None)  # the same work as with random weights
            for model in models.values():
                model.train(training).to(device, PRECISIONS[precision])
                if compiled:
                    compile_model(model, settings.compile_mode, training=training)
            for batch_size in settings.batch_sizes:
                kind = f"{task}, {precision}{', compiled' if compiled else ''}"
                log.info("%s, batches of %d: %s", kind, batch_size, ", ".join(models))
                try:
                    timed = time_models(cfg, settings, models, macs, trained, batch_size, training)
                except torch.cuda.OutOfMemoryError:
                    log.warning("a batch of %d does not fit", batch_size)
                    break
                setting = {"task": task, "precision": precision, "compiled": compiled}
                rows += [setting | row for row in timed]
                write_speed(run_dir, about, rows)  # an interrupted run keeps what it has timed
        log_table(loggers, "benchmark", rows)
    print_speed(rows)
    print(f"written to {run_dir}")
    return rows


def build_models(cfg: DictConfig, trained: Trained | None) -> dict[str, nn.Module]:
    """``cfg.models`` with random weights, and the trained model under the name "trained".

    With a trained model, the others get its backbone, image size and number of classes.
    """
    torch.manual_seed(cfg.seed)
    models = {}
    for name in cfg.models:
        method = dict(plain(cfg.models[name]))
        described: dict[str, Any] = {"method": method, "image_size": cfg.image_size}
        described["backbone"] = plain(cfg.backbone)
        if "reducer" in method:
            described["reducer"] = method.pop("reducer")
        classes = cfg.num_classes
        if trained is not None:
            described |= {key: getattr(trained.record, key) for key in ("backbone", "image_size")}
            classes = len(trained.record.classes)
        models[str(name)] = build_model(described, classes)
    if trained is not None:
        models["trained"] = deepcopy(trained.model)
    return models


def time_models(
    cfg: DictConfig,
    settings: BenchmarkSettings,
    models: dict[str, nn.Module],
    macs: dict[str, list[float]],
    trained: Trained | None,
    batch_size: int,
    training: bool,
) -> list[Row]:
    """Time all models in turns on one batch size; a row for every model and exit fraction.

    With `training` a step of each model is timed instead, with every image in all passes.
    """
    parameter = next(next(iter(models.values())).parameters())
    side = cfg.image_size if trained is None else trained.record.image_size
    torch.manual_seed(cfg.seed)
    noise = torch.randn(batch_size, 3, side, side).to(parameter)
    cases: list[Case] = []
    for name, model in models.items():
        images, described, threshold = noise, plain(cfg.models.get(name)), None
        if name == "trained" and trained is not None:
            data = open_data(cfg.get("data"), trained.record)
            samples = data.some_validation_samples(batch_size)
            pixels = torch.stack([sample.pixels for sample in samples])
            images = normalize(pixels, data.preprocessing).to(parameter)
            threshold = trained.record.threshold
            described = {**trained.record.method, "ckpt_path": str(cfg.ckpt_path)}
        columns: Row = {
            "model": name,
            "settings": json.dumps(described),
            "exits": None,
            "exit_fraction": None,
            "gmacs": sum(macs[name]) / 1e9,
            "batch_size": len(images),
        }
        if training:
            cases.append((training_step(model, images), columns))
        elif len(macs[name]) == 1:
            cases.append((partial(model, images), columns))
        elif threshold is not None:
            columns["exits"] = f"measured at eta={threshold:g}"
            cases.append(early_exit_case(model, images, threshold, macs[name], columns))
        else:
            columns["exits"] = "stated"
            thresholds = [threshold_for(model, images, share) for share in settings.exit_fractions]
            cases += [
                early_exit_case(model, images, eta, macs[name], columns)
                for eta in dict.fromkeys(thresholds)  # a batch of one has two shares at most
            ]
    rounds = settings.warmup + settings.repeats
    log.info("  %d settings, each timed %d times in turns", len(cases), rounds)
    seconds = time_interleaved(
        {str(number): run for number, (run, _) in enumerate(cases)},
        warmup=settings.warmup,
        repeats=settings.repeats,
        device=parameter.device,
        gradients=training,
    )
    base_time, base = float(np.median(seconds["0"])), cases[0][1]
    rows = []
    for (run, columns), times in zip(cases, seconds.values(), strict=True):
        count, median = columns["batch_size"], float(np.median(times))
        speedup, ideal = base_time / median, base["gmacs"] / columns["gmacs"]
        timed = {
            "images_per_second": count / median,
            "images_per_second_slowest": count / max(times),
            "images_per_second_fastest": count / min(times),
            "latency_ms_p50": 1e3 * median,
            "latency_ms_p95": 1e3 * float(np.quantile(times, 0.95, method="inverted_cdf")),
            "compared_with": base["model"],
            "measured_speedup": speedup,
            "ideal_speedup": ideal,
            "share_of_ideal": speedup / ideal,
            "repeats": len(times),
            "peak_memory_mb": peak_memory(run, parameter.device, gradients=training),
        }
        rows.append(columns | timed)
    return rows


def early_exit_case(
    model: nn.Module, images: Tensor, threshold: float, macs: list[float], columns: Row
) -> Case:
    """Early exit on one batch, with its exit fraction and cost measured on these images.

    All of it is timed: choosing cells, gathering the images that go on, and scattering their
    logits.
    """
    run = partial(early_exit, model, images, threshold)
    with torch.inference_mode():
        exits = run().exited.double().mean().item()
    gmacs = (macs[0] + (1 - exits) * sum(macs[1:])) / 1e9
    return run, columns | {"exit_fraction": exits, "gmacs": gmacs}


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, loss, backward and AdamW; at a learning rate of 0, so that the weights stay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        with trainable_attention(model, images):
            logits = forward_passes(model, images).logits
        targets = torch.arange(len(images), device=images.device) % logits[-1].shape[1]
        torch.stack(pass_losses(logits, targets)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step

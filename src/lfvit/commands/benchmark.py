"""`benchmark(cfg)`: throughput and latency of models with one and several passes, in one run."""

import json
import logging
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from timm.layers import LayerScale
from torch import Tensor, nn

from lfvit.data.augment import normalize
from lfvit.errors import ConfigError
from lfvit.measure.costs import pass_macs
from lfvit.measure.settings import RUNTIMES, BenchmarkSettings
from lfvit.measure.thresholds import NO_EXIT
from lfvit.measure.throughput import (
    PRECISIONS,
    compile_model,
    peak_memory,
    threshold_for,
    time_interleaved,
)
from lfvit.models.blocks import trainable_attention
from lfvit.models.export import join, quantise, write_passes
from lfvit.models.passes import (
    EarlyExitOutput,
    confidence_of,
    early_exit,
    forward_passes,
    num_passes,
)
from lfvit.results.speed import print_speed, write_speed
from lfvit.runs.datasets import open_data
from lfvit.runs.directory import start_run
from lfvit.runs.models import Trained, build_model, load_trained
from lfvit.runs.provenance import environment
from lfvit.runs.record import CheckpointRecord, said_preprocessing
from lfvit.runs.trainers import find_device, has_bfloat16
from lfvit.runtime import Runtime, open_graph
from lfvit.tracking.loggers import log_table, tracked
from lfvit.training.losses import pass_losses
from lfvit.utils.validation import plain, validate

log = logging.getLogger(__name__)

CALIBRATION = slice(None, None, 8)  # photographs that give int8 its ranges

Row = dict[str, Any]

Case = tuple[Callable[[], object], Row]
"""What is timed, and the columns of its row that are known before."""


class Table(NamedTuple):
    """What the rows of a table have in common."""

    runtime: str
    task: str
    precision: str
    compiled: bool


class Photographs(NamedTuple):
    """Validation images of a trained model.

    pixels: (N, 3, S, S) uint8. targets: (N,) classes. record: of the model. num_passes: it has.
    """

    pixels: Tensor
    targets: Tensor
    record: CheckpointRecord
    num_passes: int

    def batch(self, rows: Any) -> Tensor:
        """Some of them, normalised."""
        return normalize(self.pixels[rows], self.record.preprocessing)

    def ways(self) -> dict[str | None, float]:
        """In which ways the model runs: what column exits says, and the threshold."""
        eta = self.record.threshold
        if self.num_passes == 1:
            return {None: eta}
        return {"none": NO_EXIT, f"measured at eta={eta:g}": eta, "all": 0.0}

    @torch.inference_mode()
    def top1(self, model: nn.Module, like: Tensor) -> dict[str | None, float]:
        """Top-1 in percent in each way, on the images that int8 was not calibrated on."""
        rows = torch.arange(len(self.pixels))
        chosen = (rows[rows % CALIBRATION.step > 0] if len(rows) > 1 else rows).split(32)
        found = {}
        for exits, eta in self.ways().items():
            answers = [early_exit(model, self.batch(c).to(like), eta).logits for c in chosen]
            right = torch.cat(answers).argmax(1).cpu() == self.targets[torch.cat(chosen)]
            found[exits] = 100 * right.double().mean().item()
        return found


class Exported(nn.Module):
    """A model in onnxruntime, called as in PyTorch."""

    def __init__(self, graph: Path, macs: list[float]) -> None:
        super().__init__()
        self.num_passes = len(macs)
        session = open_graph(graph, torch.get_num_threads(), ["CPUExecutionProvider"])
        card = {"classes": [], "mean": [0.0], "std": [1.0], "macs": macs, "threshold": 0.0}
        self.runtime = Runtime(card, session)

    def forward(self, images: Tensor) -> Tensor:
        return self.infer(images, 0.0).logits

    def infer(self, images: Tensor, threshold: float) -> EarlyExitOutput:
        found = [torch.from_numpy(x) for x in self.runtime.infer(images.numpy(), threshold)[:3]]
        return EarlyExitOutput(found[0], found[1], found[2], None)


def benchmark(cfg: DictConfig) -> list[Row]:
    """Time every model in every precision, compiled or not, at every batch size and exit fraction.

    Writes benchmark.csv, .json and .md. Weights are random and inputs are noise: speed
    depends on neither, because the share of images that exits is stated. With ``ckpt_path``, a
    trained model runs on its validation images as well, with its accuracy.

    Returns:
        One row per model and setting.

    Raises:
        LFViTError: a setting or the checkpoint is at fault.
    """
    values = {name: plain(cfg[name]) for name in BenchmarkSettings.model_fields}
    settings = validate(BenchmarkSettings, values)
    if not (cfg.models or cfg.ckpt_path):
        raise ConfigError("models names none; leave it out, or pass ckpt_path=FILE")
    device = find_device(cfg.accelerator)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    trained: Trained | None = None
    photographs: Photographs | None = None
    if cfg.ckpt_path is not None:
        trained = load_trained(
            cfg.ckpt_path, {"threshold": cfg.threshold} | said_preprocessing(cfg)
        )
        data = open_data(cfg.get("data"), trained.record)
        samples = data.some_validation_samples(max(settings.top1_images, *settings.batch_sizes))
        pixels = torch.stack([sample.pixels for sample in samples])
        targets = torch.tensor([sample.target for sample in samples])
        photographs = Photographs(pixels, targets, trained.record, num_passes(trained.model))
    # before anything is timed: a mistake in the last model is reported now
    macs = {name: pass_macs(model) for name, model in build_models(cfg, trained).items()}
    for name in macs:
        if "onnx" in settings.runtime and len(macs[name]) > 2:
            raise ConfigError(
                f"models.{name} has {len(macs[name])} passes, and runtime=onnx runs two at most; "
                f"leave it out with '~models.{name}', or pass runtime=torch"
            )
    run_dir = start_run(cfg)
    shared = {name: cfg[name] for name in ("image_size", "compile_mode")}
    shared["backbone"] = json.dumps(plain(cfg.backbone))
    side = cfg.image_size
    if trained is not None:
        shared["image_size"] = side = trained.record.image_size
        shared["backbone"] = json.dumps(trained.record.backbone)
    about = {"settings": shared, "environment": environment()}
    rows: list[Row] = []
    with (
        tracked(cfg, "benchmark", trained.record if trained else None) as loggers,
        TemporaryDirectory() as folder,
    ):
        for table in tables(settings, device):
            models, training = build_models(cfg, trained), table.task == "training"
            if training:
                models.pop("trained", None)  # the same work as with random weights
            like = torch.empty(0)
            if table.runtime == "torch":
                like = like.to(device, PRECISIONS[table.precision])
            for name, model in models.items():
                if table.runtime == "onnx":
                    log.info("exporting %s, %s", name, table.precision)
                    own = photographs if name == "trained" else None
                    seen = noise(cfg, 32, side) if own is None else own.batch(CALIBRATION)
                    graph = write_graph(model, Path(folder, name), table.precision, seen)
                    models[name] = Exported(graph, macs[name])
                else:
                    model.train(training).to(like)
                    if table.compiled:
                        compile_model(model, settings.compile_mode, training=training)
            accuracy = {}
            if photographs is not None and not training and not table.compiled:
                accuracy = photographs.top1(models["trained"], like)
            for batch_size in settings.batch_sizes:
                words = ", ".join(map(str, table[: 3 + table.compiled])).replace("True", "compiled")
                log.info("%s, batches of %d: %s", words, batch_size, ", ".join(models))
                try:
                    images = noise(cfg, batch_size, side).to(like)
                    timed = time_models(cfg, settings, models, macs, images, photographs, training)
                except torch.cuda.OutOfMemoryError:
                    log.warning("a batch of %d does not fit", batch_size)
                    break
                for row in timed:
                    if row["model"] == "trained":
                        row["top1"] = accuracy.get(row["exits"])
                    rows.append(table._asdict() | row)
                write_speed(run_dir, about, rows)  # an interrupted run keeps what it has timed
        log_table(loggers, "benchmark", rows)
    print_speed(rows)
    print(f"written to {run_dir}")
    return rows


def tables(settings: BenchmarkSettings, device: torch.device) -> list[Table]:
    """Every combination of the settings that there is."""
    auto = {"torch": "bf16" if has_bfloat16(device.type) else "fp32", "onnx": "fp32"}
    found = []
    for runtime in settings.runtime:
        asked = [auto[runtime] if name == "auto" else name for name in settings.precision]
        precisions = [name for name in dict.fromkeys(asked) if name in RUNTIMES[runtime]]
        torchs = runtime == "torch"
        tasks = ("inference", "training")[: 1 + (settings.training and torchs)]
        compiles = settings.compile if torchs else [False]
        found += [Table(runtime, *rest) for rest in product(tasks, precisions, compiles)]
    return found


def build_models(cfg: DictConfig, trained: Trained | None) -> dict[str, nn.Module]:
    """``cfg.models`` with random weights, and the trained model under the name "trained".

    With a trained model, the others get its backbone, image size and number of classes.
    """
    torch.manual_seed(cfg.seed)
    models = {}
    for name in cfg.models or ():
        method = plain(cfg.models[name])
        if not isinstance(method, dict) or "name" not in method:
            raise ConfigError(
                f"models.{name}={method} names no method; pass for example "
                f"'models.{name}={{name:lf_vit,region_size:4}}'"
            )
        method = dict(method)
        described: dict[str, Any] = {"method": method, "image_size": cfg.image_size}
        described["backbone"] = plain(cfg.backbone)
        if "reducer" in method:
            described["reducer"] = method.pop("reducer")
        classes = cfg.num_classes
        if trained is not None:
            described |= {key: getattr(trained.record, key) for key in ("backbone", "image_size")}
            classes = len(trained.record.classes)
        models[str(name)] = build_model(described, classes)
        for module in models[str(name)].modules():
            if isinstance(module, LayerScale):  # begins so small that all images look alike
                nn.init.ones_(module.gamma)
    if trained is not None:
        models["trained"] = deepcopy(trained.model)
    return models


def write_graph(model: nn.Module, folder: Path, precision: str, images: Tensor) -> Path:
    """model.onnx of a model; what int8 starts from is written once.

    Args:
        images: (N, 3, S, S), from which int8 takes the ranges of values.
    """
    passes = sorted(folder.glob("*_fp32.onnx"))  # first_pass before second_pass
    if not passes:
        folder.mkdir()
        passes = write_passes(model, images.shape[-1], folder)
    if precision == "int8":
        passes = quantise(passes, images.numpy())
    join(passes, folder / f"{precision}.onnx")
    return folder / f"{precision}.onnx"


def noise(cfg: DictConfig, batch_size: int, side: int) -> Tensor:
    """Images (B, 3, S, S) of nothing, always the same."""
    generator = torch.Generator().manual_seed(cfg.seed)
    return torch.randn(batch_size, 3, side, side, generator=generator)


def time_models(
    cfg: DictConfig,
    settings: BenchmarkSettings,
    models: dict[str, nn.Module],
    macs: dict[str, list[float]],
    random_images: Tensor,
    photographs: Photographs | None,
    training: bool,
) -> list[Row]:
    """Time all models in turns on one batch; a row for every model and exit fraction.

    With `training` a step of each model is timed instead, with every image in all passes.
    """
    cases: list[Case] = []
    for name, model in models.items():
        own = photographs if name == "trained" else None
        images, described = random_images, plain((cfg.models or {}).get(name))
        if own is not None:
            count = min(len(images), len(own.pixels))
            images = own.batch(torch.linspace(0, len(own.pixels) - 1, count).long()).to(images)
            described = {**own.record.method, "ckpt_path": str(cfg.ckpt_path)}
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
        elif own is not None:
            for exits, eta in own.ways().items():
                known = columns | {"exits": exits}
                cases.append(early_exit_case(model, images, eta, macs[name], known))
        else:
            columns["exits"] = "stated"
            etas = [threshold_for(model, images, share) for share in settings.exit_fractions]
            cases += [
                early_exit_case(model, images, eta, macs[name], columns)
                for eta in dict.fromkeys(etas)  # a batch of one has two shares at most
            ]
    rounds = settings.warmup + settings.repeats
    log.info("  %d settings, each timed %d times in turns", len(cases), rounds)
    seconds = time_interleaved(
        {str(number): run for number, (run, _) in enumerate(cases)},
        warmup=settings.warmup,
        repeats=settings.repeats,
        device=random_images.device,
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
            "peak_memory_mb": peak_memory(run, random_images.device, gradients=training),
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
        shares = [1.0, 1 - exits]  # of the images, in each pass
        if len(macs) > 2:
            logits = forward_passes(model, images).logits[:-1]
            going_on = torch.stack([confidence_of(one) < threshold for one in logits])  # (P - 1, B)
            shares[1:] = going_on.double().cumprod(0).mean(1).tolist()
    gmacs = float(np.dot(macs, shares)) / 1e9
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

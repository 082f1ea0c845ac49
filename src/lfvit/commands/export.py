"""`export(cfg)`: write a trained model as an ONNX file, and compare it with the model."""

import shlex
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from lfvit.data.images import images_of
from lfvit.errors import ConfigError, ExportError
from lfvit.measure.costs import pass_macs
from lfvit.measure.settings import ExportSettings
from lfvit.measure.thresholds import NO_EXIT
from lfvit.models.export import WEIGHTS, join, quantise, write_passes
from lfvit.models.passes import early_exit, num_passes
from lfvit.runs.directory import start_run
from lfvit.runs.models import Trained, load_trained
from lfvit.runs.provenance import commit
from lfvit.runs.record import model_overrides
from lfvit.runtime import CARD, FORMAT, GRAPH, Runtime, load
from lfvit.utils.atomic_io import write_json
from lfvit.utils.validation import validate

BATCHES = (1, 2, 5)  # images in each check; graphs are captured with another number
CALIBRATION = 256  # images for int8: half of them give the ranges, the others are the check


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write model.onnx, two passes with early exit inside, and model.json beside it.

    Returns:
        The content of model.json: the model's settings, how images are prepared, MACs of each
        pass, the largest difference between onnxruntime and PyTorch, and in int8 the share of
        images that each pass answers as in float32.

    Raises:
        LFViTError: packages are missing, the model cannot be exported, or the file answers
            otherwise than the model.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):  # before anything is written
        import_module(name)
    settings = validate(ExportSettings, {k: cfg[k] for k in ExportSettings.model_fields})
    trained = load_trained(cfg.ckpt_path, model_overrides(cfg))
    if num_passes(trained.model) > 2:
        raise ConfigError(
            f"method={trained.record.method['name']} has more than two passes, which the runtime "
            "without PyTorch does not run; export a model of one or two"
        )
    photographs = [] if settings.calibrate is None else images_of(settings.calibrate, "calibrate")
    if len(photographs) == 1:
        raise ConfigError(f"calibrate={settings.calibrate}: holds one image, and two are needed")
    card = describe(trained)
    run_dir = start_run(cfg)
    with TemporaryDirectory(dir=run_dir) as name:
        folder = Path(name)
        passes = write_passes(trained.model, card["image_size"], folder)
        card[WEIGHTS] = join(passes, folder / GRAPH)
        write_json(folder / CARD, card)
        card["largest_difference"] = check_parity(trained.model, folder, settings.tolerance)
        if settings.precision == "int8":
            exact = load(folder)
            chosen = photographs[:: -(-len(photographs) // CALIBRATION)]
            images = np.stack([exact.prepare(photograph) for photograph in chosen])
            card[WEIGHTS] = join(quantise(passes, images[::2]), folder / GRAPH)
            card |= {"precision": "int8", "checked_on": len(images[1::2])}
            write_json(folder / CARD, card)
            card["agreement"] = agreement(exact, load(folder), images[1::2], settings.agreement)
        write_json(folder / CARD, card)
        for path in folder.glob("model.*"):
            path.replace(run_dir / path.name)
    size = sum(path.stat().st_size for path in run_dir.glob(f"{GRAPH}*")) / 1e6
    print(f"{GRAPH}: {size:.1f} MB, {settings.precision}")
    for one_pass, difference in card["largest_difference"].items():
        line = f"{one_pass}: largest difference of float32 from PyTorch {difference:.1e}"
        if "agreement" in card:
            line += f", {card['agreement'][one_pass]:.1%} of {card['checked_on']} images as in fp32"
        print(line)
    print(f"written to {run_dir}")
    print(f"without PyTorch: python -m lfvit.runtime {shlex.quote(str(run_dir))} IMAGE...")
    return card


def describe(trained: Trained) -> dict[str, Any]:
    """The content of model.json: what `lfvit.runtime` needs, and where the model comes from."""
    model, record = trained.model, trained.record
    return {
        "format": FORMAT,
        "method": record.method["name"],
        "settings": {key: getattr(record, key) for key in ("method", "backbone", "reducer")},
        "region_size": getattr(model, "region_size", None),
        "classes": record.classes,
        "image_size": record.image_size,
        **record.preprocessing.model_dump(),
        "exif": record.data.get("exif", False),
        "threshold": record.threshold,
        "macs": pass_macs(model),
        "precision": "fp32",
        "commit": commit(),
        "trained_commit": record.commit,
    }


def thresholds(card: dict[str, Any]) -> dict[str, float]:
    """Names of the passes, and a threshold at which all images stop after each."""
    return {"first_pass": 0.0, "second_pass": NO_EXIT} if len(card["macs"]) > 1 else {"model": 0.0}


def check_parity(model: nn.Module, folder: Path, tolerance: float) -> dict[str, float]:
    """The largest difference of onnxruntime's logits from PyTorch's, of each pass.

    Images whose cells differ are left out, as long as they are few: scores that are equal but for
    rounding may be ranked either way.

    Returns:
        Of each pass, relative to the largest value if that is above 1.

    Raises:
        ExportError: it is above `tolerance`, or the file does not run.
    """
    runtime = load(folder)
    size = runtime.card["image_size"]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 3, size, size, generator=generator) for count in BATCHES]
    largest = {}
    for name, threshold in thresholds(runtime.card).items():
        differences, num_alike = [0.0], 0
        for images in batches:
            expected = early_exit(model, images, threshold)
            try:
                found = runtime.infer(images.numpy(), threshold)
            except Exception as error:  # onnxruntime's errors have no common base
                raise ExportError(f"{GRAPH} does not run: {error}") from error
            alike = np.ones(len(images), bool)
            if expected.selection is not None and found.fine_indices is not None:
                cells = expected.selection.fine_indices.sort(dim=1).values.numpy()
                alike = (cells == np.sort(found.fine_indices, axis=1)).all(axis=1)
            logits = expected.logits.numpy()
            difference = np.abs(logits - found.logits).max(axis=1) / max(1.0, np.abs(logits).max())
            differences += difference[alike].tolist()
            num_alike += alike.sum()
        largest[name] = float(np.max(differences))  # not a number if one is not
        if num_alike <= sum(BATCHES) / 2 or not largest[name] <= tolerance:
            raise ExportError(
                f"{name} differs from PyTorch by {largest[name]:.1e}, more than "
                f"tolerance={tolerance:g}, or chooses other cells: the same for {num_alike} of "
                f"{sum(BATCHES)} images"
            )
    return largest


def agreement(
    exact: Runtime, rounded: Runtime, images: np.ndarray, least: float
) -> dict[str, float]:
    """The share of images that each pass of `rounded` answers as `exact` does.

    Args:
        images: (N, 3, S, S), normalised.

    Raises:
        ExportError: it is below `least`.
    """
    shares = {}
    batches = [images[i : i + 16] for i in range(0, len(images), 16)]
    for name, threshold in thresholds(exact.card).items():
        same = [
            exact.infer(batch, threshold).logits.argmax(1)
            == rounded.infer(batch, threshold).logits.argmax(1)
            for batch in batches
        ]
        shares[name] = float(np.concatenate(same).mean())
        if shares[name] < least:
            raise ExportError(
                f"in int8 the {name} answers {shares[name]:.1%} of {len(images)} images as in "
                f"float32, less than agreement={least:g}; use precision=fp32, other photographs in "
                "calibrate, or a lower agreement"
            )
    return shares

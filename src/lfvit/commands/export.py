"""`export(cfg)`: write a trained model as ONNX files, and compare them with it."""

import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from lfvit.errors import ConfigError, ExportError
from lfvit.measure.costs import pass_macs
from lfvit.models.export import PassModule, pass_modules, write_onnx
from lfvit.models.passes import num_passes
from lfvit.runs.directory import start_run
from lfvit.runs.models import Trained, load_trained
from lfvit.runs.provenance import commit
from lfvit.runs.record import model_overrides
from lfvit.runtime import CARD, FORMAT, load, run
from lfvit.utils.atomic_io import write_json

BATCHES = (1, 2, 5)  # images in each check; graphs are captured with another number


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write first_pass.onnx and second_pass.onnx, or model.onnx, with model.json beside them.

    Returns:
        The content of model.json: the model's settings, how images are prepared, MACs of each
        pass, and the largest difference between onnxruntime and PyTorch.

    Raises:
        LFViTError: packages are missing, the model cannot be exported, or the files differ from
            the model.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):  # before anything is written
        import_module(name)
    if not cfg.tolerance > 0:
        raise ConfigError(f"tolerance={cfg.tolerance} must be above 0")
    trained = load_trained(cfg.ckpt_path, model_overrides(cfg))
    if num_passes(trained.model) > 2:
        raise ConfigError(
            f"method={trained.record.method['name']} has more than two passes, which the runtime "
            "without PyTorch does not run; export a model of one or two"
        )
    card = describe(trained)
    size = trained.record.image_size
    passes = pass_modules(trained.model, torch.zeros(3, 3, size, size))
    card["files"] = [f"{one_pass.name}.onnx" for one_pass in passes]
    run_dir = start_run(cfg)
    for one_pass, name in zip(passes, card["files"], strict=True):
        write_onnx(one_pass, run_dir / name)
    write_json(run_dir / CARD, card)
    card["largest_difference"] = check_parity(passes, run_dir, cfg.tolerance)
    write_json(run_dir / CARD, card)
    for one_pass, name in zip(passes, card["files"], strict=True):
        size = (run_dir / name).stat().st_size / 1e6
        difference = card["largest_difference"][one_pass.name]
        print(f"{name}: {size:.1f} MB, largest difference from PyTorch {difference:.1e}")
    print(f"checked on batches of {', '.join(map(str, BATCHES))} images; written to {run_dir}")
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
        "commit": commit(),
        "trained_commit": record.commit,
    }


@torch.no_grad()
def check_parity(passes: list[PassModule], folder: Path, tolerance: float) -> dict[str, float]:
    """The largest difference of onnxruntime from PyTorch, of each pass on the same inputs.

    Every floating-point output of a pass is compared. Chosen cells are not: scores that are equal
    but for rounding may be ranked either way.

    Returns:
        Of each pass, relative to the largest value if that is above 1.

    Raises:
        ExportError: it is above `tolerance`, or a file does not run.
    """
    runtime = load(folder)
    size = runtime.card["image_size"]
    generator = torch.Generator().manual_seed(0)
    largest = {one_pass.name: 0.0 for one_pass in passes}
    for count in BATCHES:
        values = {"images": torch.randn(count, 3, size, size, generator=generator)}
        for one_pass, session in zip(passes, runtime.sessions, strict=True):
            expected = one_pass.module(*(values[name] for name in one_pass.inputs))
            expected = expected if isinstance(expected, tuple) else (expected,)
            try:
                found = run(session, {name: value.numpy() for name, value in values.items()})
            except Exception as error:  # onnxruntime's errors have no common base
                raise ExportError(f"{one_pass.name}.onnx does not run: {error}") from error
            for name, value in zip(one_pass.outputs, expected, strict=True):
                if value.is_floating_point():
                    scale = max(1.0, float(value.abs().max()))
                    difference = float(np.abs(value.numpy() - found[name]).max()) / scale
                    largest[one_pass.name] = max(largest[one_pass.name], difference)
            values |= dict(zip(one_pass.outputs, expected, strict=True))
        for name, difference in largest.items():
            if not difference <= tolerance:  # also if it is not a number
                raise ExportError(
                    f"{name}.onnx differs from PyTorch by {difference:.1e} on {count} images, more "
                    f"than tolerance={tolerance:g}"
                )
    return largest

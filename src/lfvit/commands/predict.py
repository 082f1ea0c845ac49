"""`predict(cfg)`: classify files, say which pass answered, and show where the model looked."""

import logging
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from lfvit.data.augment import Augment
from lfvit.data.datamodule import ON_ERROR, normalise
from lfvit.data.folders import images_of
from lfvit.data.images import Decoding, UnreadableImageError, read_image
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs
from lfvit.models.resample import downsample
from lfvit.models.two_pass import TwoPassViT
from lfvit.results.steps import save_steps
from lfvit.runs.devices import find_device
from lfvit.runs.directory import start_run
from lfvit.runs.setup import Trained, load_trained, model_overrides
from lfvit.tracking.pictures import Look, save_looks
from lfvit.utils.atomic_io import write_json
from lfvit.utils.validation import check_choice, check_whole

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Classify one file, several, or a folder; writes predictions.json and a picture for each.

    Returns:
        One entry per readable image: path, top classes with their probabilities, confidence, which
        pass answered, GMACs spent and the region.

    Raises:
        LFViTError: anything the user can mend; what was predicted before is kept.
    """
    check_choice("on_error", cfg.on_error, ON_ERROR)
    check_whole("top", cfg.top, 1)
    sources = list(cfg.image) if isinstance(cfg.image, ListConfig) else [cfg.image]
    paths = [path for source in sources for path in images_of(str(source))]
    trained = load_trained(cfg.ckpt_path, model_overrides(cfg))
    if cfg.steps and not isinstance(trained.model, TwoPassViT):
        raise ConfigError("steps=true draws two passes; the model of ckpt_path has one")
    run_dir = start_run(cfg)
    device = find_device(cfg.accelerator)
    trained.model.to(device)
    about = trained.record.get("data", {})
    augment = Augment.of(about.get("augment"))
    decoding = Decoding(exif=about.get("exif", False))
    transform = augment.eval_transform(trained.record["image_size"])
    found: list[dict[str, Any]] = []
    skipped = 0
    try:
        for number, path in enumerate(paths):
            try:
                image = read_image(path, decoding)
            except UnreadableImageError as error:
                if cfg.on_error == "raise":
                    raise UnreadableImageError(f"{error}; on_error=skip leaves it out") from error
                log.warning("skipped: %s", error)
                skipped += 1
                continue
            pixels = torch.as_tensor(transform(image)).to(device)
            entry, look = look_at(trained, pixels, cfg.top)
            if cfg.pictures:
                entry["picture"] = f"{number:04d}_{path.stem}.png"
                save_looks([look], run_dir / entry["picture"])
            if cfg.steps:
                entry["steps"] = f"{number:04d}_{path.stem}_steps.png"
                save_steps(trained.model, normalise(pixels[None]), look, run_dir / entry["steps"])  # type: ignore[arg-type]
            found.append({"path": str(path), **entry})
            _print(found[-1])
    finally:
        write_json(run_dir / "predictions.json", {"images": found, "skipped": skipped})
        print(f"{len(found)} images, {skipped} unreadable; written to {run_dir}")
    return found


def look_at(trained: Trained, pixels: Tensor, top: int) -> tuple[dict[str, Any], Look]:
    """Classify one image.

    Args:
        trained: model and record; the model may be on any device.
        pixels: (3, S, S) uint8, on the model's device.
        top: how many classes to name.

    Returns:
        The entry for predictions.json, and what to draw.
    """
    record = trained.record
    model: Any = trained.model
    images = normalise(pixels[None])
    threshold = record["threshold"]
    with torch.inference_mode():
        if isinstance(model, TwoPassViT):
            out = model.infer(images, threshold)
            logits, exited, selection = out.logits, bool(out.exited[0]), out.selection
        else:
            logits, exited, selection = model(images), True, None
    probabilities = logits.float().softmax(dim=1)[0]
    best = probabilities.topk(min(top, len(probabilities)))
    classes = [
        {"class": record["classes"][index], "probability": round(value, 4)}
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    entry: dict[str, Any] = {"top": classes, "confidence": classes[0]["probability"]}
    look = Look(
        image=_to_array(pixels),
        view=_to_array(downsample(pixels[None].float())[0]),
        answer=f"{classes[0]['class']}, {classes[0]['probability']:.0%}",
        exited=exited,
    )
    if selection is None:
        return {**entry, "answered_by": "only pass", "gmacs": count_macs(model) / 1e9}, look
    region = None if selection.region is None else selection.region[0].cpu()
    entry |= {
        "answered_by": "first pass" if exited else "second pass",
        "first_confidence": round(out.confidence[0].item(), 4),
        "threshold": threshold,
        "gmacs": count_macs(model, "first" if exited else None) / 1e9,
        "region": None if region is None else region.tolist(),
        "region_size": None if region is None else model.region_size,
    }
    return entry, look._replace(
        gca=selection.gca[0].cpu(),
        fine=selection.fine_indices[0].cpu(),
        region=region,
        region_size=model.region_size,
    )


def _print(entry: dict[str, Any]) -> None:
    print(f"\n{entry['path']}")
    for line in entry["top"]:
        print(f"  {100 * line['probability']:5.1f} %  {line['class']}")
    print(f"  answered by the {entry['answered_by']}, {entry['gmacs']:.3f} GMACs")


def _to_array(pixels: Tensor) -> np.ndarray:
    """(3, H, W) in 0..255 -> (H, W, 3) uint8."""
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

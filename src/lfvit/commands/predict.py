"""`predict(cfg)`: classify files, say which pass answered, and show where the model looked."""

import logging
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from lfvit.data.augment import eval_transform
from lfvit.data.folders import images_of
from lfvit.data.images import UnreadableImageError, read_image
from lfvit.data.settings import AugmentSettings
from lfvit.errors import ConfigError
from lfvit.measure.costs import pass_macs
from lfvit.measure.settings import PredictionSettings
from lfvit.models.passes import num_passes
from lfvit.results.steps import draw_steps
from lfvit.runs.devices import find_device
from lfvit.runs.directory import start_run
from lfvit.runs.record import model_overrides
from lfvit.runs.setup import Trained, load_trained
from lfvit.tracking.pictures import Prediction, draw_predictions, predict_images
from lfvit.utils.atomic_io import write_json
from lfvit.utils.validation import validate

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Classify one file, several, or a folder; writes predictions.json and a picture for each.

    Returns:
        One entry per readable image: path, top classes with their probabilities, confidence, which
        pass answered, GMACs spent and the region.

    Raises:
        LFViTError: anything the user can mend; what was predicted before is kept.
    """
    settings = validate(PredictionSettings, {k: cfg[k] for k in PredictionSettings.model_fields})
    sources = list(cfg.image) if isinstance(cfg.image, ListConfig) else [cfg.image]
    paths = [path for source in sources for path in images_of(str(source))]
    trained = load_trained(cfg.ckpt_path, model_overrides(cfg))
    if settings.steps and num_passes(trained.model) == 1:
        raise ConfigError("steps=true draws two passes; the model of ckpt_path has one")
    run_dir = start_run(cfg)
    trained.model.to(find_device(cfg.accelerator))
    about = trained.record.data
    augment = validate(AugmentSettings, about.get("augment") or {}, "augment")
    transform = eval_transform(augment, trained.record.image_size)
    found: list[dict[str, Any]] = []
    skipped = 0
    try:
        for number, path in enumerate(paths):
            try:
                image = read_image(path, exif=about.get("exif", False))
            except UnreadableImageError as error:
                if settings.on_error == "raise":
                    raise UnreadableImageError(f"{error}; on_error=skip leaves it out") from error
                log.warning("skipped: %s", error)
                skipped += 1
                continue
            pixels = torch.as_tensor(transform(image))[None]
            record = trained.record
            prediction = predict_images(trained.model, pixels, record.classes, record.threshold)[0]
            entry = _entry(trained, prediction, settings.top)
            if settings.pictures:
                entry["picture"] = f"{number:04d}_{path.stem}.png"
                draw_predictions([prediction], run_dir / entry["picture"])
            if settings.steps:
                entry["steps"] = f"{number:04d}_{path.stem}_steps.png"
                draw_steps(trained.model, prediction, run_dir / entry["steps"])
            found.append({"path": str(path), **entry})
            _print(found[-1])
    finally:
        write_json(run_dir / "predictions.json", {"images": found, "skipped": skipped})
        print(f"{len(found)} images, {skipped} unreadable; written to {run_dir}")
    return found


def _entry(trained: Trained, prediction: Prediction, top: int) -> dict[str, Any]:
    """An image's entry in predictions.json, with its `top` most probable classes."""
    probabilities = prediction.logits[prediction.exit_pass].softmax(dim=0)
    best = probabilities.topk(min(top, len(probabilities)))
    classes = [
        {"class": prediction.classes[index], "probability": round(value, 4)}
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    macs = pass_macs(trained.model)
    entry = {
        "top": classes,
        "confidence": classes[0]["probability"],
        "answered_by": f"pass {prediction.exit_pass + 1}",
        "gmacs": sum(macs[: prediction.exit_pass + 1]) / 1e9,
    }
    if len(macs) > 1:
        region = prediction.region
        entry |= {
            "first_confidence": round(prediction.logits[0].softmax(dim=0).max().item(), 4),
            "threshold": trained.record.threshold,
            "region": None if region is None else list(region),
            "region_size": prediction.region_size or None,
        }
    return entry


def _print(entry: dict[str, Any]) -> None:
    print(f"\n{entry['path']}")
    for line in entry["top"]:
        print(f"  {100 * line['probability']:5.1f} %  {line['class']}")
    print(f"  answered by {entry['answered_by']}, {entry['gmacs']:.3f} GMACs")

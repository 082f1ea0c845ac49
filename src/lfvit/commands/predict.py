"""`predict(cfg)`: classify image files, and draw which part the second pass sees."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from lfvit.data.augment import eval_transform
from lfvit.data.images import UnreadableImageError, images_of, printable, read_image
from lfvit.measure.costs import pass_macs
from lfvit.measure.settings import PredictionSettings
from lfvit.runs.directory import start_run
from lfvit.runs.models import Trained, load_trained
from lfvit.runs.record import model_overrides
from lfvit.runs.trainers import find_device, inference_context
from lfvit.tracking.pictures import Prediction, draw_predictions, predict_images
from lfvit.utils.atomic_io import write_json
from lfvit.utils.extras import can_draw
from lfvit.utils.validation import validate

log = logging.getLogger(__name__)

UNSURE = 0.5  # of the answer's probability: below it, the image may show something else


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Classify one file, several, or a folder; writes predictions.json and a picture for each.

    Returns:
        One entry per readable image: path, top classes with their probabilities, exit pass (from
        1), GMACs, and of two passes the confidence of the first, the threshold and the region.

    Raises:
        LFViTError: a setting, the checkpoint or an image is at fault; what was predicted before is
            written.
    """
    settings = validate(PredictionSettings, {k: cfg[k] for k in PredictionSettings.model_fields})
    sources = list(cfg.image) if isinstance(cfg.image, ListConfig) else [cfg.image]
    paths = [path for source in sources for path in images_of(str(source))]
    trained = load_trained(cfg.ckpt_path, model_overrides(cfg))
    model, record = trained
    macs = pass_macs(model)
    run_dir = start_run(cfg)
    device = find_device(cfg.accelerator)
    model.to(device)
    context = inference_context(cfg.precision, device)
    if len(macs) > 1:
        print(record.about_threshold)
    drawn = settings.pictures and can_draw("pictures are")
    entries: list[dict[str, Any]] = []
    num_skipped = 0
    try:
        with context:  # around all images: weights are rounded to bfloat16 once
            for number, path in enumerate(paths):
                try:
                    prediction = predict_file(trained, path)
                except UnreadableImageError as error:
                    if settings.on_error == "raise":
                        raise UnreadableImageError(
                            f"{error}; on_error=skip leaves it out"
                        ) from error
                    log.warning("skipped: %s", error)
                    num_skipped += 1
                    continue
                entry = {"path": printable(path), **_entry(prediction, macs, settings.top)}
                if len(macs) > 1:
                    entry["threshold"] = record.threshold
                if drawn:
                    entry["picture"] = f"{number:04d}_{printable(path.stem)}.png"
                    draw_predictions([prediction], run_dir / entry["picture"])
                entries.append(entry)
                print(f"\n{printable(path)}: pass {entry['exit_pass']}, {entry['gmacs']:.3f} GMACs")
                for line in entry["top"]:
                    print(f"  {line['probability']:6.1%}  {line['class']}")
                if prediction.confidence < UNSURE:
                    known = ", ".join(record.classes[:10])
                    more = ", ..." if len(record.classes) > 10 else ""
                    print(
                        f"  unsure: this model knows {len(record.classes)} classes: {known}{more}"
                    )
    finally:
        write_json(run_dir / "predictions.json", {"images": entries, "num_skipped": num_skipped})
        print(f"{len(entries)} images, {num_skipped} skipped; written to {run_dir}")
    return entries


def predict_file(trained: Trained, path: str | Path) -> Prediction:
    """All passes of a model on an image file, and which one answers at its threshold.

    Raises:
        UnreadableImageError: no image.
    """
    model, record = trained
    image = read_image(path, exif=record.data.get("exif", False))
    pixels = torch.as_tensor(eval_transform(record.preprocessing, record.image_size)(image))[None]
    (prediction,) = predict_images(
        model, pixels, record.preprocessing, record.classes, record.threshold
    )
    return prediction


def _entry(prediction: Prediction, macs: list[float], top: int) -> dict[str, Any]:
    """An image's entry in predictions.json, with its `top` most probable classes."""
    probabilities = prediction.logits.softmax(dim=1)  # (passes, C)
    best = probabilities[prediction.exit_pass].topk(min(top, probabilities.shape[1]))
    entry: dict[str, Any] = {
        "top": [
            {"class": prediction.classes[index], "probability": round(value, 4)}
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ],
        "exit_pass": prediction.exit_pass + 1,
        "gmacs": sum(macs[: prediction.exit_pass + 1]) / 1e9,
    }
    if len(macs) > 1:
        entry |= {
            "first_confidence": round(probabilities[0].max().item(), 4),
            "region": None if prediction.region is None else list(prediction.region),
            "region_size": prediction.region_size or None,
        }
    return entry

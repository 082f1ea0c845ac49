"""Images for the report page: what each model saw, chose and answered."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from lfvit.data import ImageDataModule
from lfvit.data.batches import Sample
from lfvit.errors import LFViTError
from lfvit.results.old.evaluated import Run
from lfvit.runs.setup import Trained, load_trained, open_data
from lfvit.tracking.pictures import (
    Prediction,
    attention_image,
    predict_images,
    second_pass_image,
)
from lfvit.utils.seeding import seeded

SEARCHED = 120  # validation images among which examples are looked for
SMALLEST = 168  # pixels a picture is at least enlarged to, in whole steps
KINDS = (
    ("Easy and right", True, True, "the first look was enough"),
    ("Easy and wrong", True, False, "confident at the first look, and mistaken"),
    ("Hard and right", False, True, "looked again, and got it"),
    ("Hard and wrong", False, False, "looked again, and still mistaken"),
)


def choose_models(runs: Sequence[Run]) -> list[Run]:
    """LF-ViT and CF-ViT on the same data, or what there is: at most two two-pass models."""
    two_pass = [run for run in runs if run.two_pass]
    if not two_pass:
        return []

    def method(run: Run) -> str:
        return run.evaluation["method"]["name"]

    lead = next((run for run in two_pass if method(run) == "lf_vit"), two_pass[0])
    others = [run for run in two_pass if run.model != lead.model and run.data == lead.data]
    return [lead, *sorted(others, key=lambda run: method(run) == method(lead))[:1]]


def make_examples(runs: Sequence[Run], count: int) -> dict[str, Any]:
    """Validation images the first model finds easy and hard, gets right and wrong.

    Args:
        runs: as of `choose_models`.
        count: images to show, over the four kinds.

    Returns:
        ``groups`` of images, and ``missing``, what could not be shown and why.
    """
    missing: list[str] = []
    models: list[tuple[Run, Trained]] = []
    samples: list[Sample] = []
    for run in runs:
        try:
            trained, found = _open(run)
        except (LFViTError, OSError, ValueError) as error:
            missing.append(f"{run.name}: {error}")
            continue
        if samples and not _same(samples, found):
            missing.append(f"{run.name}: other validation images than {models[0][0].name}")
            continue
        samples = samples or found
        models.append((run, trained))
    if not models:
        return {"groups": [], "missing": missing, "searched": 0, "by": "", "threshold": None}
    lead_run, lead = models[0]
    with seeded(0):
        predicted = [_predict(trained, samples) for _, trained in models]
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for i, prediction in enumerate(predicted[0]):
        kinds.setdefault((prediction.exited, prediction.correct), []).append(i)
    groups = []
    for title, exited, right, text in KINDS:
        share = max(1, count // len(KINDS))
        chosen = kinds.get((exited, right), [])
        images = [
            _show(
                [(run, of_model[i]) for (run, _), of_model in zip(models, predicted, strict=True)]
            )
            for i in _spread_out(chosen, samples, share)
        ]
        groups.append({"title": title, "text": text, "found": len(chosen), "images": images})
    return {
        "groups": groups,
        "missing": missing,
        "searched": len(samples),
        "by": lead_run.name,
        "threshold": lead.record["threshold"],
    }


def _open(run: Run) -> tuple[Trained, list[Sample]]:
    """The model as it was evaluated, and some of the images it was evaluated on."""
    trained, data = open_run(run)
    with seeded(0):
        return trained, data.some_validation_samples(SEARCHED)


def open_run(run: Run) -> tuple[Trained, ImageDataModule]:
    """The model as it was evaluated, and the data it was evaluated on."""
    evaluation = run.evaluation
    checkpoint = Path(evaluation["checkpoint"])
    moved = [folder / "checkpoints" / checkpoint.name for folder in run.folder.parents[:3]]
    path = next((p for p in (checkpoint, *moved) if p.exists()), checkpoint)
    keys = ("method", "backbone", "reducer", "image_size")
    settings = {key: evaluation[key] for key in keys if evaluation.get(key) is not None}
    operating_point = evaluation.get("operating_point") or {}
    settings["threshold"] = operating_point.get("threshold")
    with seeded(0):
        trained = load_trained(path, settings)
        own = run.settings.get("data") or {}
        # plain values: in a config, "${oc.env:NAME}" would come out as what NAME holds here
        data = open_data(SimpleNamespace(data=own, ckpt_path=path), trained.record)
        return trained, data


def _same(ours: list[Sample], theirs: list[Sample]) -> bool:
    return len(ours) == len(theirs) and all(
        a.target == b.target
        and a.pixels.shape == b.pixels.shape
        and bool((a.pixels == b.pixels).all())
        for a, b in zip(ours, theirs, strict=True)
    )


def _spread_out(indices: list[int], samples: list[Sample], count: int) -> list[int]:
    """So many of them, of different classes first."""
    seen: dict[int, int] = {}
    ranked = []
    for i in indices:
        ranked.append((seen.setdefault(samples[i].target, 0), i))
        seen[samples[i].target] += 1
    return [i for _, i in sorted(ranked)[:count]]


def _predict(trained: Trained, samples: Sequence[Sample]) -> list[Prediction]:
    record = trained.record
    return predict_images(
        trained.model,
        torch.stack([sample.pixels for sample in samples]),
        record["classes"],
        record["threshold"],
        [sample.target for sample in samples],
        [sample.box for sample in samples],
    )


def _show(predictions: list[tuple[Run, Prediction]]) -> dict[str, Any]:
    """One image with the predictions of every model."""
    first = predictions[0][1]
    assert first.target is not None
    return {
        "truth": first.classes[first.target],
        "image": data_uri(first.image),
        "models": [_one(run, prediction) for run, prediction in predictions],
    }


def _one(run: Run, prediction: Prediction) -> dict[str, Any]:
    window, words = None, "cells all over the image"
    assert prediction.gca is not None
    cells = prediction.gca.shape[0]
    if prediction.region is not None:
        (row, column), size = prediction.region, prediction.region_size
        window = {
            key: round(100 * value / cells, 3)
            for key, value in (("left", column), ("top", row), ("side", size))
        }
        words = (
            f"a window of {size} by {size} of the {cells} by {cells} cells, from row {row + 1}, "
            f"column {column + 1}"
        )
    return {
        "name": run.model,
        "answer": prediction.label,
        "probability": prediction.confidence,
        "right": prediction.correct,
        "exited": prediction.exited,
        "attention": data_uri(attention_image(prediction)),
        "second": data_uri(second_pass_image(prediction)),
        "window": window,
        "words": words,
    }


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as an image inside of a page; small ones enlarged without smoothing."""
    image = Image.fromarray(pixels)
    times = max(1, -(-SMALLEST // image.width))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()

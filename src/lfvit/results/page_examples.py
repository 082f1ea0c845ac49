"""Validation images for the report page, with what each model predicts and attends to."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lfvit.data import ImageDataModule
from lfvit.errors import DataError
from lfvit.results.collect import Run
from lfvit.runs.setup import Trained, load_trained, open_data
from lfvit.tracking.pictures import (
    Prediction,
    attention_image,
    predict_images,
    second_pass_image,
)
from lfvit.utils.seeding import seeded

SEARCHED = 120  # validation images among which examples are searched
MIN_SIDE = 168  # pixels; smaller pictures are enlarged in whole steps
KINDS = (
    ("Easy and right", True, True, "the first pass was enough"),
    ("Easy and wrong", True, False, "the first pass was confident and wrong"),
    ("Hard and right", False, True, "the second pass was needed"),
    ("Hard and wrong", False, False, "wrong after both passes"),
)


def choose_models(runs: Sequence[Run]) -> list[Run]:
    """LF-ViT and CF-ViT on the same data, or what there is: at most two models of two passes."""
    two_pass = [run for run in runs if run.num_passes > 1]
    if not two_pass:
        return []

    def method(run: Run) -> str:
        return run.evaluation.method["name"]

    lead = next((run for run in two_pass if method(run) == "lf_vit"), two_pass[0])
    others = [run for run in two_pass if run.model != lead.model and run.data == lead.data]
    return [lead, *sorted(others, key=lambda run: method(run) == method(lead))[:1]]


def make_examples(runs: Sequence[Run], count: int) -> dict[str, Any]:
    """Validation images by whether the first model exits early on them and is right.

    Args:
        runs: as of `choose_models`.
        count: number of images over the four kinds.

    Returns:
        ``groups`` of images, and ``missing``, what could not be shown and why.
    """
    missing: list[str] = []
    models: list[tuple[Run, list[Prediction]]] = []
    pixels, threshold = torch.empty(0), 0.0
    for run in runs:
        try:
            (model, record), data = open_run(run)
            samples = data.some_validation_samples(SEARCHED)
            images = torch.stack([sample.pixels for sample in samples])
            if models and not torch.equal(images, pixels):
                raise DataError(f"other validation images than {models[0][0].name}")
            targets, boxes = [s.target for s in samples], [s.box for s in samples]
            with seeded(0):
                predictions = predict_images(
                    model,
                    images,
                    record.preprocessing,
                    record.classes,
                    record.threshold,
                    targets,
                    boxes,
                )
        except Exception as error:  # one run must not cost the page of the others
            missing.append(f"{run.name}: {error or type(error).__name__}")
            continue
        if not models:
            pixels, threshold = images, record.threshold
        models.append((run, predictions))
    groups = []
    for title, exited, correct, text in KINDS if models else ():
        lead = models[0][1]
        kind = [i for i, one in enumerate(lead) if (one.exited, one.correct) == (exited, correct)]
        share = max(1, count // len(KINDS))
        chosen = kind[:: max(1, len(kind) // share)][:share]  # of different classes
        shown = [_show([(run, predictions[i]) for run, predictions in models]) for i in chosen]
        groups.append({"title": title, "text": text, "count": len(kind), "images": shown})
    by = models[0][0].name if models else ""
    about = {"searched": len(pixels), "by": by, "threshold": threshold}
    return {"groups": groups, "missing": missing, **about}


def open_run(run: Run) -> tuple[Trained, ImageDataModule]:
    """The model as it was evaluated, and the data it was evaluated on.

    Raises:
        LFViTError, OSError: the model or its images are not there any more.
    """
    evaluation = run.evaluation
    keys = ("method", "backbone", "reducer", "image_size")
    settings = {key: getattr(evaluation, key) for key in keys}
    if evaluation.preprocessing is not None:
        settings["preprocessing"] = evaluation.preprocessing.model_dump()
    settings["threshold"] = evaluation.configured.threshold
    with seeded(0):
        trained = load_trained(run.checkpoint, settings)
        trained_on = trained.record.data
        given = run.evaluation_config.get("data") or {}
        given = {key: value for key, value in given.items() if value is not None}
        if given.get("dataset", trained_on.get("dataset")) == trained_on.get("dataset"):
            given = {**trained_on, **given}
        # in the record's place: nothing that a file names is instantiated but this project's own
        record = trained.record.model_copy(update={"data": given})
        data = open_data(None, record)
        return trained, data


def _show(predictions: list[tuple[Run, Prediction]]) -> dict[str, Any]:
    """One image with the predictions of every model."""
    first = predictions[0][1]
    assert first.target is not None
    return {
        "truth": first.classes[first.target],
        "image": data_uri(first.image),
        "models": [_show_model(run.model, prediction) for run, prediction in predictions],
    }


def _show_model(name: str, prediction: Prediction) -> dict[str, Any]:
    window, words = None, "cells all over the image"
    assert prediction.gca is not None
    if prediction.region is not None:
        (row, column), size, g = prediction.region, prediction.region_size, len(prediction.gca)
        sides = {"left": column, "top": row, "side": size}
        window = {key: round(100 * value / g, 3) for key, value in sides.items()}
        words = (
            f"a window of {size} by {size} of the {g} by {g} cells, from row {row + 1}, "
            f"column {column + 1}"
        )
    return {
        "name": name,
        "caption": f"{prediction.label}, {prediction.confidence:.0%}",
        "right": prediction.correct,
        "exited": prediction.exited,
        "attention": data_uri(attention_image(prediction)),
        "second": data_uri(second_pass_image(prediction)),
        "window": window,
        "words": words,
    }


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a data URI; small images are enlarged without smoothing."""
    image = Image.fromarray(pixels)
    times = max(1, -(-MIN_SIDE // image.width))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()

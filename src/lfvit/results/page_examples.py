"""Validation images for the report page, with what each model predicts and attends to."""

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from lfvit.data import ImageDataModule
from lfvit.errors import DataError
from lfvit.results.collect import Run
from lfvit.runs.datasets import open_data
from lfvit.runs.models import Trained, load_trained
from lfvit.tracking.pictures import Prediction, draw_predictions, predict_images
from lfvit.utils.seeding import seeded

SEARCHED = 120  # validation images among which examples are searched
KINDS = (
    ("Easy and right", True, True, "the first pass was enough"),
    ("Easy and wrong", True, False, "the first pass was confident and wrong"),
    ("Hard and right", False, True, "the second pass was needed"),
    ("Hard and wrong", False, False, "wrong after both passes"),
)


def choose_models(runs: Sequence[Run]) -> list[Run]:
    """LF-ViT and CF-ViT on the same data, or what there is: at most two models of two passes."""
    two_pass = [run for run in runs if run.num_passes > 1]
    two_pass.sort(key=lambda run: run.evaluation.method["name"] != "lf_vit")
    lead = two_pass[:1]
    others = [run for run in two_pass if run.model != lead[0].model and run.data == lead[0].data]
    return lead + others[-1:]


def make_examples(runs: Sequence[Run], count: int) -> dict[str, Any]:
    """Validation images by whether the first model exits early on them and is right.

    Args:
        runs: as of `choose_models`.
        count: number of images over the four kinds.

    Returns:
        ``groups`` of images, and ``missing``, what could not be shown and why.
    """
    missing: list[str] = []
    models: dict[str, list[Prediction]] = {}
    lead: list[Prediction] = []
    about: dict[str, Any] = {}
    for run in runs:
        try:
            predictions, threshold = predict_run(run, SEARCHED)
            if lead and [one.image.tobytes() for one in lead] != [
                one.image.tobytes() for one in predictions
            ]:
                raise DataError(f"other validation images than {about['by']}")
        except Exception as error:  # one run must not cost the page of the others
            missing.append(f"{run.name}: {error or type(error).__name__}")
            continue
        models[run.model] = predictions
        if not lead:
            lead = predictions
            about = {"searched": len(lead), "by": run.name, "threshold": threshold}
    groups = []
    for title, exited, correct, text in KINDS if models else ():
        kind = [i for i, one in enumerate(lead) if (one.exited, one.correct) == (exited, correct)]
        share = max(1, count // len(KINDS))
        images = [
            {
                "truth": lead[i].classes[lead[i].target or 0],
                "models": [_show(name, predictions[i]) for name, predictions in models.items()],
            }
            for i in kind[:: max(1, len(kind) // share)][:share]  # of different classes
        ]
        groups.append({"title": title, "text": text, "count": len(kind), "images": images})
    return {"groups": groups, "missing": missing, **about}


def predict_run(run: Run, count: int) -> tuple[list[Prediction], float]:
    """What a model predicts on some of its validation images, and its threshold."""
    (model, record), data = open_run(run)
    samples = data.some_validation_samples(count)
    with seeded(0):
        predictions = predict_images(
            model,
            torch.stack([sample.pixels for sample in samples]),
            record.preprocessing,
            record.classes,
            record.threshold,
            [sample.target for sample in samples],
            [sample.box for sample in samples],
        )
    return predictions, record.threshold


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
        return trained, open_data(None, record)


def _show(name: str, prediction: Prediction) -> dict[str, Any]:
    """A model's passes on one image, as a picture inside the page."""
    drawn, picture = BytesIO(), BytesIO()
    draw_predictions([prediction], drawn)
    Image.open(drawn).convert("RGB").save(picture, "WEBP", quality=85)
    return {
        "name": name,
        "caption": f"{prediction.label}, {prediction.confidence:.0%}",
        "right": prediction.correct,
        "exited": prediction.exited,
        "picture": f"data:image/webp;base64,{base64.b64encode(picture.getvalue()).decode()}",
    }

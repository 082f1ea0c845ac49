"""Pictures for a page of results: answered early and late, right and wrong, and put wrong."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from PIL import Image

from lfvit.data import ImageDataModule
from lfvit.measure.thresholds import correct_at
from lfvit.results.changes import harmed
from lfvit.results.comparisons import Evaluated
from lfvit.results.evaluated import Run
from lfvit.results.page_examples import KINDS, open_run
from lfvit.runs.setup import Trained
from lfvit.tracking.pictures import draw_predictions, predict_images
from lfvit.utils.seeding import seeded

WIDTH = 660  # pixels of a picture; it is part of every clone
QUALITY = 80


class Kind(NamedTuple):
    """Images of one kind. caption: what it is. images: names, some of those there are. threshold:
    at which the model looks at them."""

    caption: str
    images: list[str]
    threshold: float


def choose(seeds: Sequence[Evaluated], count: int) -> list[Kind]:
    """So many images of each kind that occurs, the same ones every time.

    Args:
        seeds: all seeds of the model; early and late, right and wrong are those of the first.
        count: images of each kind.
    """
    rows = seeds[0].predictions
    eta = seeds[0].evaluation["calibrated"]["threshold"]
    early = rows["confidence_1"] >= eta
    right = correct_at(rows, eta)
    found = []
    for title, exits, good, text in KINDS:
        chosen = rows[(early == exits) & (right == good)]
        if len(chosen):
            caption = f"{title}: {text} ({len(chosen):,} of {len(rows):,} images)"
            found.append(Kind(caption, _spread(chosen, count), eta))
    worst = harmed([each.predictions for each in seeds])
    if len(worst):
        images = [image for image in worst.index if image in rows.index][:count]
        # above any confidence: the second look is drawn
        found.append(Kind("Put wrong by the second look, in most seeds first", images, 2.0))
    return found


def save_examples(run: Run, kinds: Sequence[Kind], stem: Path) -> dict[str, Path]:
    """Draw what a model saw in images of each kind.

    Args:
        run: whose model is drawn.
        kinds: see `choose`.
        stem: of the files, such as docs/images/results.

    Returns:
        Caption -> file.

    Raises:
        LFViTError, OSError: the model or its images are not there any more.
    """
    trained, data = open_run(run)
    stem.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in kinds:
        name = re.split("[:,]| by", kind.caption.lower())[0].replace(" ", "_")
        path = found[kind.caption] = stem.with_name(f"{stem.name}_{name}.jpg")
        trained.record["threshold"] = kind.threshold
        _save(trained, data, kind.images, path)
    return found


def _spread(rows: pd.DataFrame, count: int) -> list[str]:
    """So many of the images, of different classes first."""
    turn = rows.groupby("target").cumcount().sort_values(kind="stable")
    return list(turn.index[:count])


def _save(trained: Trained, data: ImageDataModule, images: Sequence[str], path: Path) -> None:
    numbers = {name: number for number, name in enumerate(data.image_names())}
    pictures = data.val_dataset()
    samples = [pictures[numbers[name]] for name in images]
    pixels = torch.stack([sample.pixels for sample in samples])
    record = trained.record
    with seeded(0):
        predictions = predict_images(
            trained.model,
            pixels,
            record["classes"],
            record["threshold"],
            [sample.target for sample in samples],
            [sample.box for sample in samples],
        )
    file = io.BytesIO()
    draw_predictions(predictions, file)
    with Image.open(file) as picture:
        height = round(picture.height * WIDTH / picture.width)
        small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.save(path, quality=QUALITY, optimize=True)

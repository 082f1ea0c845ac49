"""Pictures for a page of results: answered early and late, right and wrong, and put wrong."""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from lfvit.commands.predict import look_at
from lfvit.commands.setup import Trained
from lfvit.data import ImageDataModule
from lfvit.data.batches import Sample
from lfvit.measure.predictions import image_names, right_at
from lfvit.report.changes import harmed
from lfvit.report.comparisons import Evaluated
from lfvit.report.evaluated import Run
from lfvit.report.page_examples import KINDS, open_run
from lfvit.report.pictures import Look, save_looks
from lfvit.seeding import seeded

WIDTH = 660  # pixels of a picture; it is part of every clone
QUALITY = 80


def save_examples(run: Run, seeds: Sequence[Evaluated], count: int, stem: Path) -> dict[str, Path]:
    """Draw images of each kind, the same ones every time.

    Args:
        run: of the first seed, whose model is drawn.
        seeds: all seeds of the model, the first one first.
        count: images of each kind.
        stem: of the files, such as docs/images/results.

    Returns:
        Caption -> file, for the kinds that occur.

    Raises:
        LFViTError, OSError: the model or its images are not there any more.
    """
    trained, data = open_run(run)
    rows = seeds[0].predictions
    eta = seeds[0].evaluation["calibrated"]["threshold"]
    trained.record["threshold"] = eta
    early = rows["confidence"] >= eta
    right = right_at(rows, eta)
    stem.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, exits, good, text in KINDS:
        chosen = rows[(early == exits) & (right == good)]
        name = title.lower().replace(" ", "_")
        if len(chosen):
            path = stem.with_name(f"{stem.name}_{name}.jpg")
            _save(trained, data, _spread(chosen, count), path)
            found[f"{title}: {text} ({len(chosen):,} of {len(rows):,} images)"] = path
    worst = harmed([each.predictions for each in seeds])
    if len(worst):
        path = stem.with_name(f"{stem.name}_put_wrong.jpg")
        both = rows.loc[[image for image in worst.index if image in rows.index]]
        trained.record["threshold"] = 2.0  # above any confidence: the second look is drawn
        _save(trained, data, list(both.index[:count]), path)
        found["Put wrong by the second look, in most seeds first"] = path
    return found


def _spread(rows: pd.DataFrame, count: int) -> list[str]:
    """So many of the images, of different classes first."""
    turn = rows.groupby("target").cumcount().sort_values(kind="stable")
    return list(turn.index[:count])


def _save(trained: Trained, data: ImageDataModule, images: Sequence[str], path: Path) -> None:
    numbers = {name: number for number, name in enumerate(image_names(data))}
    pictures = data.val_dataset()
    looks: list[Look] = []
    with seeded(0):
        for name in images:
            sample = pictures[numbers[name]]
            assert isinstance(sample, Sample)
            _, look = look_at(trained, sample.pixels, top=1)
            truth = trained.record["classes"][sample.target]
            wrong = not look.answer.startswith(f"{truth},")
            words = f"\n{look.answer}" + (f"\n(it is {truth})" if wrong else "")
            looks.append(look._replace(answer=words, box=sample.box))
    file = io.BytesIO()
    save_looks(looks, file)
    with Image.open(file) as picture:
        height = round(picture.height * WIDTH / picture.width)
        small = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.save(path, quality=QUALITY, optimize=True)

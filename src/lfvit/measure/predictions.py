"""What a model answered on every image, in a file: what paired comparisons are made from."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lfvit.data import ImageDataModule
from lfvit.data.batches import image_name
from lfvit.data.needle import NeedleSet
from lfvit.errors import DataError
from lfvit.measure.evaluation import Outputs
from lfvit.measure.thresholds import Answers, confidence_of

log = logging.getLogger(__name__)

FILE = "predictions.parquet"


def save_predictions(outputs: Outputs, data: ImageDataModule, path: Path) -> None:
    """Write a row per image, in the order of the validation images.

    Columns: image, a name that is the same for every model evaluated on it (for photographs the
    path within the data's folder); target, first and second, class indices; confidence, float32,
    the largest probability of the first pass. A one-pass model has no second.
    """
    names = image_names(data)
    if len(names) != len(outputs.targets):
        log.warning(
            "%d answers for %d images: %s is not written", len(outputs.targets), len(names), path
        )
        return
    columns: dict[str, Any] = {
        "image": names,
        "target": outputs.targets.numpy().astype("int32"),
        "first": outputs.first.argmax(dim=1).numpy().astype("int32"),
        "confidence": confidence_of(outputs.first).numpy(),
    }
    if outputs.second is not None:
        columns["second"] = outputs.second.argmax(dim=1).numpy().astype("int32")
    pd.DataFrame(columns).to_parquet(path, index=False, compression="zstd")


def image_names(data: ImageDataModule) -> list[str]:
    """Names of the readable validation images, in order."""
    images: Any = data.val_images
    if isinstance(images, NeedleSet):  # another seed, size or number of classes is another set
        kind = f"needle {images.image_size} {len(images.classes)} {images.seed}"
        return [f"{kind} {index}" for index in range(len(images))]
    unreadable = data.reading.splits["val"].unreadable_images
    root = Path(getattr(data, "root", "")).expanduser()
    return [
        _within(image_name(images, index), root)
        for index in range(len(images))
        if index not in unreadable
    ]


def _within(name: str, root: Path) -> str:
    path = Path(name)
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def read_predictions(path: Path) -> pd.DataFrame:
    """The rows of `save_predictions`, by image.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; evaluate.py writes it since comparisons image by image exist: "
            "evaluate again"
        )
    return pd.read_parquet(path).set_index("image")


def answers_in(predictions: pd.DataFrame) -> Answers:
    """Answers of a two-pass model, in the order of the rows."""
    columns = (predictions[key].to_numpy() for key in Answers._fields if key != "targets")
    targets = predictions["target"].to_numpy()
    confidence, first, second = (torch.from_numpy(np.array(column)) for column in columns)
    return Answers(confidence, first, second, torch.from_numpy(np.array(targets)))


def right_at(predictions: pd.DataFrame, threshold: float | None = None) -> pd.Series:
    """Whether the answer to each image is right.

    Args:
        predictions: see `read_predictions`.
        threshold: eta; None is the last pass there is, 0 the first.
    """
    answer = predictions["second" if "second" in predictions else "first"]
    if threshold is not None and "second" in predictions:
        early = predictions["confidence"] >= np.float32(threshold)
        answer = predictions["first"].where(early, answer)
    return answer == predictions["target"]

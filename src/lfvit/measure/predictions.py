"""What a model answered on every image, in a file: what paired comparisons are made from."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lfvit.data import ImageDataModule
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
    names = data.image_names()
    columns: dict[str, Any] = {
        "image": [names[index] for index in outputs.images],
        "target": outputs.targets.numpy().astype("int32"),
        "first": outputs.first.argmax(dim=1).numpy().astype("int32"),
        "confidence": confidence_of(outputs.first).numpy(),
    }
    if outputs.second is not None:
        columns["second"] = outputs.second.argmax(dim=1).numpy().astype("int32")
    pd.DataFrame(columns).to_parquet(path, index=False, compression="zstd")


def read_predictions(path: Path) -> pd.DataFrame:
    """The rows of `save_predictions`, by image.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; evaluate.py writes it since comparisons image by image exist: "
            "evaluate again"
        )
    try:
        rows = pq.ParquetFile(path).read().to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); evaluate again") from error
    fault = _fault(rows)
    if fault:
        raise DataError(f"{path}: {fault}, as evaluate.py never writes it; evaluate again")
    return rows.set_index("image")


def _fault(rows: pd.DataFrame) -> str | None:
    """What is wrong with the rows of a file."""
    columns = {"image", "target", "first", "confidence", "second"}
    if set(rows) not in (columns, columns - {"second"}) or len(rows.columns) > len(columns):
        return f"holds the columns {', '.join(map(str, rows))}"[:200]
    for name in columns & {"target", "first", "second"} & set(rows):
        if rows[name].dtype.kind != "i" or (rows[name] < 0).any():
            return f"{name} is no class index everywhere"
    sure = rows["confidence"]
    if sure.dtype.kind != "f" or not sure.between(0, 1 + 1e-5).all():
        return "confidence is no probability everywhere"
    if not rows["image"].map(lambda name: isinstance(name, str)).all():
        return "image is no name everywhere"
    if rows.empty or rows["image"].duplicated().any():
        return "holds no image" if rows.empty else "holds an image twice"
    return None


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

"""Which classes a model gets right, and which it takes for which."""

import pandas as pd
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lfvit.measure.predictions import Predictions

MATRIX, TABLE = "confusion_matrix.csv", "per_class.csv"
SHOWN = 50  # classes in a picture of the matrix


def final_predictions(predictions: Predictions, threshold: float | None) -> Tensor:
    """(N,) classes at a threshold: of the first pass that is as confident, else of the last."""
    *earlier, last = predictions.logits
    answer = last.argmax(dim=1)
    for logits in reversed(earlier):
        if threshold is not None:
            best = logits.softmax(dim=1).max(dim=1)
            answer = torch.where(best.values >= threshold, best.indices, answer)
    return answer


def confusion_matrix(
    predictions: Predictions, classes: list[str], threshold: float | None
) -> pd.DataFrame:
    """Numbers of images: rows are the classes they are of, columns those they are taken for."""
    answers = final_predictions(predictions, threshold)
    counts = multiclass_confusion_matrix(answers, predictions.targets, len(classes))
    return pd.DataFrame(counts.numpy(), pd.Index(classes, name="class"), classes)


def per_class(
    predictions: Predictions, classes: list[str], threshold: float | None
) -> pd.DataFrame:
    """A row per class: images, top-1 in percent of each pass and at the threshold, precision.

    Also the class that its images are most often taken for instead. Empty where a class has no
    image, or is never predicted.
    """
    matrix = confusion_matrix(predictions, classes, threshold)
    counts = torch.tensor(matrix.to_numpy())  # (C, C)
    hits, images = counts.diagonal(), counts.sum(dim=1)
    table = pd.DataFrame({"images": images.numpy()}, index=matrix.index)
    for number, logits in enumerate(predictions.logits, start=1):
        right = logits.argmax(dim=1) == predictions.targets
        correct = torch.bincount(predictions.targets[right], minlength=len(classes))
        table[f"pass_{number}_top1"] = (100 * correct / images).numpy()
    if len(predictions.logits) > 1 and threshold is not None:
        table["threshold_top1"] = (100 * hits / images).numpy()
    table["precision"] = (100 * hits / counts.sum(dim=0)).numpy()
    wrong = counts - counts.diagonal().diag()
    most = wrong.max(dim=1)
    names = [classes[i] if n else None for n, i in zip(most.values, most.indices, strict=True)]
    table["taken_for"], table["taken_for_images"] = names, most.values.numpy()
    return table

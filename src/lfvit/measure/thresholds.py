"""Every early-exit threshold from one forward through all passes.

Everything here works on a table of predictions: a row per image with its target and, for pass
i = 1 ... P, ``prediction_i``, a class index, and ``confidence_i``, float32, the pass's largest
softmax probability. See `lfvit.measure.predictions`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lfvit.errors import ConfigError

NO_EXIT = 1.01
"""A threshold above any confidence: no image exits."""


def default_thresholds() -> list[float]:
    """0.00, 0.01, ... 1.00, and `NO_EXIT`."""
    return [round(i / 100, 2) for i in range(102)]


def sweep_thresholds(
    first_logits: Any,
    second_logits: Any,
    targets: Any,
    macs_first: float,
    macs_second: float,
    thresholds: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """Accuracy and cost of early exit at every threshold, from the logits of two passes.

    An image exits where its confidence (largest softmax probability of the first pass) is at least
    the threshold, as in ``model.infer``.

    Args:
        first_logits, second_logits: (N, C) tensors.
        targets: (N,) class indices.
        macs_first, macs_second: multiply-accumulates per image of each pass, see `count_macs`.
        thresholds: default `default_thresholds`.

    Returns:
        One row per threshold, in the order given; see `sweep`.

    Raises:
        ConfigError: no images, or shapes that differ.
    """
    if len(targets) == 0 or not len(first_logits) == len(second_logits) == len(targets):
        raise ConfigError(
            f"logits of {len(first_logits)} and {len(second_logits)} images and {len(targets)} "
            "targets: both passes and the targets must come from the same images, at least one"
        )
    columns = prediction_columns([first_logits, second_logits], targets)
    predictions = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    rows: Any = sweep(predictions, [macs_first, macs_second], thresholds).to_dict("records")
    return rows


def prediction_columns(logits: Sequence[Any], targets: Any) -> dict[str, Any]:
    """Columns of the table of predictions, as tensors.

    Args:
        logits: (N, C) of each pass.
        targets: (N,) class indices.
    """
    columns = {"target": targets}
    for i, of_pass in enumerate(logits, 1):
        confidence, predicted = of_pass.float().softmax(dim=1).max(dim=1)
        columns |= {f"prediction_{i}": predicted, f"confidence_{i}": confidence}
    return columns


def sweep(
    predictions: pd.DataFrame, macs: Sequence[float], thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Accuracy and cost of early exit at every threshold.

    An image exits at the first pass whose confidence is at least the threshold, or at the last
    pass. It takes a few sorts, whatever the number of thresholds.

    Args:
        predictions: N images and P passes.
        macs: multiply-accumulates per image of each pass by itself.
        thresholds: T of them; default `default_thresholds`.

    Returns:
        T rows: threshold; top1, percent; exit_fraction, share of the images that exit before the
        last pass; gmacs, mean per image; consistency, share of the images whose prediction is not
        the last pass's.
    """
    etas = default_thresholds() if thresholds is None else list(thresholds)
    classes, _ = pass_columns(predictions)
    correct = classes == predictions["target"].to_numpy()[:, None]
    differs = classes != classes[:, -1:]
    counts = count_by_pass(predictions, [np.ones_like(correct), correct, differs], etas)
    exits = counts[:, :, 0]  # (T, P)
    before = exits.cumsum(axis=1) - exits  # (T, P) images that exit before each pass
    num_correct, num_different = counts[:, :, 1:].sum(axis=1).T
    n = len(predictions)
    return pd.DataFrame(
        {
            "threshold": np.asarray(etas, dtype=float),
            "top1": 100.0 * num_correct / n,
            "exit_fraction": before[:, -1] / n,
            "gmacs": (n - before) / n @ np.asarray(macs, dtype=float) / 1e9,
            "consistency": num_different / n,
        }
    )


def count_by_pass(
    predictions: pd.DataFrame, flags: Sequence[np.ndarray], thresholds: Sequence[float]
) -> np.ndarray:
    """How many flagged images exit at each pass, at each threshold.

    An image exits at pass i where the threshold is above every confidence before it and at most its
    own, so the count is a difference of two counts of images above the threshold.

    Args:
        predictions: N images and P passes.
        flags: F arrays (N, P) of bool; [n, i] is for image n exiting at pass i.
        thresholds: T of them, in any order.

    Returns:
        (T, P, F) int64.
    """
    _, confidence = pass_columns(predictions)
    highest = np.maximum.accumulate(confidence, axis=1)
    highest[:, -1] = np.inf  # at the last pass all that are left
    etas = np.asarray(thresholds, dtype=np.float32)
    marked = np.stack(flags, axis=2).astype(np.int64)  # (N, P, F)
    counts = []
    for i in range(highest.shape[1]):
        count = _count_from(highest[:, i], marked[:, i], etas)
        if i:
            count = count - _count_from(highest[:, i - 1], marked[:, i], etas)
        counts.append(count)
    return np.stack(counts, axis=1)


def _count_from(values: np.ndarray, flags: np.ndarray, etas: np.ndarray) -> np.ndarray:
    """Sum of flags (N, F) over the rows whose value (N,) is at least eta: (T, F)."""
    order = np.argsort(-values)
    total = np.concatenate([np.zeros_like(flags[:1]), flags[order].cumsum(axis=0)])
    return total[np.searchsorted(-values[order], -etas, side="right")]


def pass_columns(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and confidences of the passes, (N, P) each."""
    passes = range(1, 1 + sum(str(name).startswith("prediction_") for name in predictions))
    classes = predictions[[f"prediction_{i}" for i in passes]].to_numpy()
    return classes, predictions[[f"confidence_{i}" for i in passes]].to_numpy()


def predictions_at(predictions: pd.DataFrame, threshold: float = NO_EXIT) -> pd.Series:
    """The class that early exit predicts for each image.

    threshold: 0 gives the first pass's prediction, `NO_EXIT` the last pass's.
    """
    classes, confidence = pass_columns(predictions)
    exits = confidence >= np.float32(threshold)  # as PyTorch compares float32 with a number
    exits[:, -1] = True
    exit_pass = exits.argmax(axis=1)
    return pd.Series(classes[np.arange(len(classes)), exit_pass], index=predictions.index)


def correct_at(predictions: pd.DataFrame, threshold: float = NO_EXIT) -> pd.Series:
    """Whether early exit classifies each image correctly, see `predictions_at`."""
    return predictions_at(predictions, threshold) == predictions["target"]


def stratified_split(targets: Any, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint parts of the images with the same class mix, as far as whole images allow.

    Args:
        targets: (N,) class indices.
        share: of the images in the first part, in (0, 1).
        seed: of the split.

    Returns:
        Row numbers (N1,) and (N2,), each ascending.

    Raises:
        ConfigError: too few images to fill both parts.
    """
    targets = np.asarray(targets)
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(targets))
    _, labels = np.unique(targets, return_inverse=True)
    # classes in random order, or small ones would always lose the same images to rounding
    rank = generator.permutation(labels.max(initial=-1) + 1)
    by_class = shuffled[np.argsort(rank[labels[shuffled]], kind="stable")]
    # walk along the classes and take an image each time another `share` of them has gone by
    taken = np.diff(np.floor(np.arange(len(targets) + 1) * share)) > 0
    if not taken.any() or taken.all():
        raise ConfigError(
            f"calibration={share} of {len(targets)} images leaves one of the two parts empty"
        )
    return np.sort(by_class[taken]), np.sort(by_class[~taken])

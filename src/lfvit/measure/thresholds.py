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
    """The operating point at every threshold, from the logits of both passes on the same images.

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
        confidence, answer = of_pass.float().softmax(dim=1).max(dim=1)
        columns |= {f"prediction_{i}": answer, f"confidence_{i}": confidence}
    return columns


def sweep(
    predictions: pd.DataFrame, macs: Sequence[float], thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Accuracy and cost of early exit at every threshold.

    An image is answered by the first pass whose confidence is at least the threshold, or by the
    last. The cost is a few sorts, whatever the number of thresholds.

    Args:
        predictions: N images and P passes.
        macs: multiply-accumulates per image of each pass by itself.
        thresholds: T of them; default `default_thresholds`.

    Returns:
        T rows: threshold; top1, percent; exit_fraction, share of the images answered before the
        last pass; gmacs, expected per image; consistency, share of the images whose prediction is
        not the last pass's.
    """
    etas = default_thresholds() if thresholds is None else list(thresholds)
    answers, _ = pass_columns(predictions)
    right = answers == predictions["target"].to_numpy()[:, None]
    differs = answers != answers[:, -1:]
    counts = count_answered(predictions, [np.ones_like(right), right, differs], etas)  # (T, P, 3)
    answered = counts[:, :, 0]
    before = answered.cumsum(axis=1) - answered  # (T, P) answered before each pass
    hits, changed = counts[:, :, 1:].sum(axis=1).T
    n = len(predictions)
    return pd.DataFrame(
        {
            "threshold": np.asarray(etas, dtype=float),
            "top1": 100.0 * hits / n,
            "exit_fraction": before[:, -1] / n,
            "gmacs": (n - before) / n @ np.asarray(macs, dtype=float) / 1e9,
            "consistency": changed / n,
        }
    )


def count_answered(
    predictions: pd.DataFrame, flags: Sequence[np.ndarray], thresholds: Sequence[float]
) -> np.ndarray:
    """How many flagged images each pass answers at each threshold.

    Pass i answers where the threshold is above every confidence before it and at most its own, so
    the count is a difference of two counts of images above the threshold.

    Args:
        predictions: N images and P passes.
        flags: F arrays (N, P) of bool, of an image if that pass answers it.
        thresholds: T of them, in any order.

    Returns:
        (T, P, F) int64.
    """
    _, confidence = pass_columns(predictions)
    highest = np.maximum.accumulate(confidence, axis=1)
    highest[:, -1] = np.inf  # the last pass answers what is left
    etas = np.asarray(thresholds, dtype=np.float32)
    marked = np.stack(flags, axis=2).astype(np.int64)  # (N, P, F)
    counts = []
    for i in range(highest.shape[1]):
        answered = _count_from(highest[:, i], marked[:, i], etas)
        if i:
            answered = answered - _count_from(highest[:, i - 1], marked[:, i], etas)
        counts.append(answered)
    return np.stack(counts, axis=1)


def _count_from(values: np.ndarray, flags: np.ndarray, etas: np.ndarray) -> np.ndarray:
    """Sum of flags (N, F) over the rows whose value (N,) is at least eta: (T, F)."""
    order = np.argsort(-values)
    total = np.concatenate([np.zeros_like(flags[:1]), flags[order].cumsum(axis=0)])
    return total[np.searchsorted(-values[order], -etas, side="right")]


def pass_columns(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and confidences of the passes, (N, P) each."""
    passes = range(1, 1 + sum(str(name).startswith("prediction_") for name in predictions))
    answers = predictions[[f"prediction_{i}" for i in passes]].to_numpy()
    return answers, predictions[[f"confidence_{i}" for i in passes]].to_numpy()


def predictions_at(predictions: pd.DataFrame, threshold: float = NO_EXIT) -> pd.Series:
    """The class that early exit predicts for each image.

    threshold: 0 gives the first pass's prediction, `NO_EXIT` the last pass's.
    """
    answers, confidence = pass_columns(predictions)
    answered = confidence >= np.float32(threshold)
    answered[:, -1] = True
    first = answered.argmax(axis=1)
    return pd.Series(answers[np.arange(len(answers)), first], index=predictions.index)


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

"""Every early-exit threshold from one forward through all passes.

A table of predictions has a row per image with its target and, for pass i = 1 ... P,
``prediction_i``, a class index, and ``confidence_i``, float32, the pass's largest softmax
probability. See `lfvit.measure.predictions`.
"""

from collections.abc import Mapping, Sequence
from math import ceil
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

    An image exits where the first pass's confidence is at least the threshold, as in
    ``model.infer``.

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
    predictions = prediction_table([first_logits, second_logits], targets)
    rows: Any = sweep(predictions, [macs_first, macs_second], thresholds).to_dict("records")
    return rows


def prediction_table(logits: Sequence[Any], targets: Any, images: Any = None) -> pd.DataFrame:
    """The table of predictions, from the logits (N, C) of each pass and class indices (N,).

    images: names of the images, the index of the table.
    """
    columns = {"target": targets.cpu().numpy().astype("int32")}
    for i, of_pass in enumerate(logits, 1):
        confidence, predicted = of_pass.float().softmax(dim=1).max(dim=1)
        columns[f"prediction_{i}"] = predicted.cpu().numpy().astype("int32")
        columns[f"confidence_{i}"] = confidence.cpu().numpy()
    return pd.DataFrame(columns, index=pd.Index(images or range(len(targets)), name="image"))


def sweep(
    predictions: pd.DataFrame, macs: Sequence[float], thresholds: Sequence[float] | None = None
) -> pd.DataFrame:
    """Accuracy and cost of early exit at every threshold.

    Args:
        predictions: N images and P passes.
        macs: multiply-accumulates per image of each pass by itself.
        thresholds: T of them; default `default_thresholds`. Also (T, P - 1), one for each exit.

    Returns:
        T rows: threshold (of the first exit), top1 (percent), exit_fraction (before the last
        pass), gmacs (mean per image), consistency (share of predictions that are not the last
        pass's).
    """
    etas = np.asarray(default_thresholds() if thresholds is None else thresholds, dtype=float)
    target, gmacs = predictions["target"].to_numpy(), np.cumsum(macs) / 1e9
    last = predictions[f"prediction_{len(macs)}"].to_numpy()
    parts = []
    for part in np.array_split(etas, ceil(len(etas) * len(predictions) / 1e7)):  # bounds memory
        exit_pass, predicted = early_exits(predictions, part)
        columns = {
            "threshold": part if part.ndim == 1 else part[:, 0],
            "top1": 100 * (predicted == target).mean(axis=1),
            "exit_fraction": (exit_pass < len(macs) - 1).mean(axis=1),
            "gmacs": gmacs[exit_pass].mean(axis=1),
            "consistency": (predicted != last).mean(axis=1),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def calibrate(predictions: pd.DataFrame, max_loss: float = 0.5) -> float:
    """The lowest threshold that loses at most `max_loss` points of top-1 against the last pass.

    No threshold that keeps as much is cheaper.
    """
    curve = sweep(predictions, [0.0] * (predictions.shape[1] // 2))
    kept = curve["top1"] >= curve["top1"].iloc[-1] - max_loss
    return float(curve["threshold"][kept].iloc[0])


def exit_thresholds(predictions: pd.DataFrame, steps: int = 61) -> np.ndarray:
    """Thresholds for each exit, to choose from: (T, P - 1).

    Of the images, a share in proportion to q^i leaves after pass i, the most confident of those
    still there (MSDNet's budgeted batches, Huang et al., ICLR 2018), for `steps` values of q from
    0.01 to 100; and the same threshold for all exits.
    """
    _, confidence = pass_columns(predictions)
    num_exits = confidence.shape[1] - 1
    rows = [[eta] * num_exits for eta in default_thresholds()]
    for q in np.geomspace(0.01, 100, steps):
        shares = q ** np.arange(num_exits + 1)
        counts = np.rint(np.cumsum(shares / shares.sum()) * len(confidence)).astype(int)
        here, gone, row = np.arange(len(confidence)), 0, []
        for i in range(num_exits):
            ranked = here[np.argsort(-confidence[here, i], kind="stable")]
            leaving = counts[i] - gone
            row.append(float(confidence[ranked[leaving - 1], i]) if leaving > 0 else NO_EXIT)
            here, gone = ranked[max(leaving, 0) :], max(counts[i], gone)
        rows.append(row)
    return np.asarray(rows)


def advise(point: Mapping[str, Any], kept: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Which threshold to use, in words, from rows of a `sweep`.

    Args:
        point: of the threshold in use.
        kept: of the one that keeps the accuracy; its threshold is None where none does.
        reference: without early exit.
    """
    share, eta = point["exit_fraction"], kept["threshold"]
    lost = reference["top1"] - point["top1"]
    text = f"{f'{share:.1%} of the images leave' if share else 'no image leaves'} early"
    text += f" at {point['threshold']:g}"
    if lost > 0.5:
        text += f", which loses {lost:.1f} points"
    if eta is None or not kept["exit_fraction"]:
        return text if share else f"{text}, nor at any threshold that keeps the accuracy"
    better = eta != point["threshold"] and (lost > 0.5 or kept["exit_fraction"] > share)
    return f"{text}; {eta:g} keeps the accuracy" if better else text


def early_exits(
    predictions: pd.DataFrame, thresholds: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each image exits, and the class predicted there.

    An image exits at the first pass whose confidence is at least the threshold, or at the last.

    Args:
        predictions: N images and P passes.
        thresholds: T of them, or (T, P - 1), one for each exit.

    Returns:
        Exit passes, from 0, and class indices, (T, N) each.
    """
    classes, confidence = pass_columns(predictions)
    etas = np.asarray(thresholds, dtype=np.float32)  # PyTorch compares in float32
    etas = etas[:, None] if etas.ndim == 1 else np.pad(etas, ((0, 0), (0, 1)))
    exits = confidence >= etas[:, None]  # (T, N, P)
    exits[..., -1] = True
    exit_pass = exits.argmax(axis=2)
    return exit_pass, classes[np.arange(len(classes)), exit_pass]


def pass_columns(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and confidences of the passes, (N, P) each."""
    classes = predictions.filter(like="prediction_").to_numpy()
    return classes, predictions.filter(like="confidence_").to_numpy()


def predictions_at(predictions: pd.DataFrame, threshold: float = NO_EXIT) -> pd.Series:
    """The class that early exit predicts for each image: at 0 the first pass's, at `NO_EXIT` the
    last pass's.
    """
    return pd.Series(early_exits(predictions, [threshold])[1][0], index=predictions.index)


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
    # in random order, or small classes would always lose the same images to rounding
    rank = generator.permutation(labels.max(initial=-1) + 1)
    by_class = shuffled[np.argsort(rank[labels[shuffled]], kind="stable")]
    # walk along the classes and take an image each time another `share` of them has gone by
    taken = np.diff(np.floor(np.arange(len(targets) + 1) * share)) > 0
    if not taken.any() or taken.all():
        raise ConfigError(
            f"calibration={share} of {len(targets)} images leaves one of the two parts empty"
        )
    return np.sort(by_class[taken]), np.sort(by_class[~taken])

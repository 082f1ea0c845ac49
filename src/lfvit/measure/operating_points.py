"""The one table of operating points: every pass, the configured threshold, and every rule."""

from collections.abc import Iterator, Sequence
from math import ceil, log, log1p
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from lfvit.measure.schemas import OperatingPoint
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.thresholds import (
    NO_EXIT,
    correct_at,
    default_thresholds,
    early_exits,
    exit_thresholds,
    pass_columns,
    predictions_at,
    stratified_split,
    sweep,
)

Choice = float | list[float] | None
"""A threshold for all exits, or one for each; None where there is none."""


def operating_points(
    predictions: pd.DataFrame, macs: Sequence[float], rules: EvaluationSettings
) -> pd.DataFrame:
    """Ways to run a model, with their accuracy and cost.

    Passes and the configured threshold are measured on all images. The other thresholds are chosen
    on the calibration images and measured on the rest.

    Args:
        predictions: N images and P passes, see `lfvit.measure.thresholds`.
        macs: multiply-accumulates per image of each pass by itself.
        rules: the threshold and the rules to apply.

    Returns:
        Columns of `lfvit.measure.schemas.OperatingPoint`, None where there is no value. A model
        with one pass has the one row "pass 1".

    Raises:
        ConfigError: too few images to hold some out.
    """

    def measure(images: pd.DataFrame, threshold: Choice) -> dict[str, Any]:
        about: dict[str, Any] = {"images": len(images), "chosen_on": 0}
        about["reference_top1"] = 100 * float(correct_at(images).mean())
        if threshold is None:
            return about
        etas: Any = [threshold]
        point: Any = sweep(images, macs, etas).to_dict("records")[0]
        by_exit = {"threshold": None, "thresholds": threshold}
        return point | about | (by_exit if isinstance(threshold, list) else {})

    classes, _ = pass_columns(predictions)
    rows = []
    for i in range(len(macs)):
        point = {
            "rule": f"pass {i + 1}",
            "top1": 100 * float((classes[:, i] == predictions["target"]).mean()),
            "exit_fraction": float(i < len(macs) - 1),
            "gmacs": sum(macs[: i + 1]) / 1e9,
            "consistency": float((classes[:, i] != classes[:, -1]).mean()),
        }
        rows.append(measure(predictions, None) | point)
    if len(macs) > 1:
        if rules.threshold is not None:
            rows.append(measure(predictions, rules.threshold) | {"rule": "threshold"})
        split = stratified_split(predictions["target"], rules.calibration, rules.calibration_seed)
        calibration, rest = (predictions.iloc[part] for part in split)
        for rule, threshold, reason in choose_thresholds(calibration, macs, rules):
            choice = {"rule": rule, "chosen_on": len(calibration), "reason": reason}
            rows.append(measure(rest, threshold) | choice)
    table = pd.DataFrame(rows, columns=list(OperatingPoint.model_fields))
    return table.astype(object).where(table.notna(), None)


def choose_thresholds(
    calibration: pd.DataFrame, macs: Sequence[float], rules: EvaluationSettings
) -> Iterator[tuple[str, Choice, str | None]]:
    """Each rule, its threshold from the calibration images, and why there is none.

    With more than one exit, max_loss and max_gmacs also choose one threshold for each.
    """
    curve = sweep(calibration, macs)
    _, confidence = pass_columns(calibration)
    highest = sorted(confidence[:, :-1].max(axis=1).tolist(), reverse=True)
    last, first = curve["top1"].iloc[-1], macs[0] / 1e9

    def with_exits(share: float) -> float:
        """The largest threshold at which at least this share of the images exits."""
        exits = ceil(share * len(highest) - 1e-9)
        return highest[exits - 1] if exits > 0 else NO_EXIT

    def cheapest(top1: float, etas: Any) -> Choice:
        """The cheapest of some thresholds with at least this accuracy, None if there is none."""
        points = sweep(calibration, macs, etas)
        good = points[points["top1"] >= top1]
        return None if good.empty else etas[good["gmacs"].idxmin()]

    def most_accurate(gmacs: float, etas: Any) -> Choice:
        """The most accurate of some thresholds within a budget, None if there is none."""
        points = sweep(calibration, macs, etas)
        good = points[points["gmacs"] <= gmacs * (1 + 1e-9)]
        order = good.sort_values(["top1", "gmacs"], ascending=[False, True], kind="stable")
        return None if good.empty else etas[order.index[0]]

    # the grid, and of two passes the threshold that spends the budget to the full
    grid = default_thresholds()
    left = 0.0 if rules.max_gmacs is None else rules.max_gmacs * (1 + 1e-9) - first
    spent = with_exits(1 - min(1, max(0, left) / (sum(macs[1:]) / 1e9)))
    searches: list[tuple[str, Any, Any]] = [("", grid, [spent, *grid])]
    if len(macs) > 2:
        by_exit = exit_thresholds(calibration).tolist()
        searches.insert(0, (" by exit", by_exit, by_exit))
    for suffix, for_loss, for_budget in searches:
        if rules.max_loss is not None:
            threshold = cheapest(last - rules.max_loss, for_loss)
            yield f"max_loss={rules.max_loss:g}{suffix}", threshold, None
        if rules.max_gmacs is not None:
            threshold = most_accurate(rules.max_gmacs, for_budget)
            reason = f"the first pass alone costs {first:.4g} GMACs" if threshold is None else None
            yield f"max_gmacs={rules.max_gmacs:g}{suffix}", threshold, reason
    if rules.min_top1 is not None:
        threshold, top1 = cheapest(rules.min_top1, grid), curve["top1"].max()
        reason = f"no threshold reaches more than {top1:.2f} %" if threshold is None else None
        yield f"min_top1={rules.min_top1:g}", threshold, reason
    if rules.max_second is not None:
        yield f"max_second={rules.max_second:g}", with_exits(1 - rules.max_second), None
    if rules.risk is not None:
        for loss in rules.risk.losses:
            for eps in rules.risk.eps:
                threshold = certified_threshold(calibration, loss, eps, rules.risk.delta)
                needed = f"needs at least {images_needed(eps, rules.risk.delta)} calibration images"
                yield f"{loss}<={eps:g}", threshold, needed if threshold is None else None


def certified_threshold(
    predictions: pd.DataFrame, loss: str, eps: float, delta: float
) -> float | None:
    """The smallest of 1.01, 1.00, ... 0.00 that is certified to keep the risk at or below eps.

    Jazbec et al., "Fast yet Safe: Early-Exiting with Risk Control", NeurIPS 2024, by fixed-sequence
    testing (Angelopoulos et al., "Learn then Test", 2021). Thresholds are tested from the one above
    any confidence downward, with the null hypothesis R(eta) > eps. Testing stops at the first one
    that cannot be rejected at level delta, and the threshold *before* it is kept:

        P(R(eta) <= eps) >= 1 - delta over the draw of the calibration images.

    A violation needs the first true null hypothesis to be rejected, so no correction for multiple
    tests is due. The p-value is exact for independent images; with a split stratified by class,
    failures vary less (Hoeffding 1956), and the test errs to the safe side. Every bound holds by
    itself, for the average image of the same distribution, and not where the calibration images
    were trained on or picked the checkpoint.

    The loss of an image is 0 or 1. "consistency": its prediction is not the last pass's. "gap": it
    is wrong and the last pass is correct. This is the positive part of the difference in accuracy,
    which bounds it and admits the exact binomial test: to certify eps = 1 % at delta = 0.1 without
    one failure takes 230 images, and 46,000 with a Hoeffding-Bentkus test of the difference.

    Args:
        predictions: of the n calibration images, see `lfvit.measure.thresholds`.
        loss: "consistency" or "gap".
        eps, delta: in (0, 1).

    Returns:
        None where not even the first threshold can be certified, see `images_needed`.
    """
    etas = default_thresholds()[::-1]
    _, predicted = early_exits(predictions, etas)  # (T, N)
    last, target = predictions_at(predictions).to_numpy(), predictions["target"].to_numpy()
    fails = predicted != last
    if loss == "gap":
        fails &= (predicted != target) & (last == target)
    p_values = binom.cdf(fails.sum(axis=1), len(predictions), eps)
    certified = int(np.cumprod(p_values <= delta).sum())
    return etas[certified - 1] if certified else None


def images_needed(eps: float, delta: float) -> int:
    """The fewest images that can certify eps: (1 - eps)^n <= delta, without one failure."""
    return ceil(log(delta) / log1p(-eps))

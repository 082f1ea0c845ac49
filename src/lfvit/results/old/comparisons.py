"""Trained models against each other, image by image and seed by seed, from their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pandas as pd

from lfvit.errors import DataError
from lfvit.measure.operating_points import choose_thresholds
from lfvit.measure.paired import Comparison, compare
from lfvit.measure.predictions import FILE, read_predictions
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.thresholds import NO_EXIT, correct_at, stratified_split, sweep

BUDGET = 0.37
"""Of the one-pass model's cost: LF-ViT's paper reports DeiT-S's accuracy at 63 % fewer FLOPs."""

MARGIN = 1.0
"""Points of top-1: accuracies count as equal where a larger loss lies outside of the interval."""

WAYS = {
    "first": "first pass alone",
    "both": "both passes",
    "calibrated": "early exit, calibrated",
    "equal": "early exit, for equal accuracy",
    "budget": f"early exit, within {100 * BUDGET:.0f} % of the cost",
}
"""Ways of running a two-pass model. The last three choose a threshold on one part of the images
and are compared on the other; the last two in view of the model they are compared with."""


class Evaluated(NamedTuple):
    """One seed of a model: the contents of its evaluate.json, and its answers."""

    evaluation: Mapping[str, Any]
    predictions: pd.DataFrame

    @classmethod
    def read(cls, evaluation: Mapping[str, Any], folder: Path) -> "Evaluated":
        """From the folder of the evaluation.

        Raises:
            DataError: it was made before answers were kept, or they are not those of this model.
        """
        rows = read_predictions(folder / FILE)
        two = "prediction_2" in rows
        if two != (evaluation["second"] is not None):
            raise DataError(
                f"{folder / FILE}: has {'two answers' if two else 'one answer'} for "
                "an image, unlike the model of evaluate.json beside it; evaluate again"
            )
        return cls(evaluation, rows)


class Point(NamedTuple):
    """One seed of a model run in one way. met: whether a threshold did what it was chosen for."""

    right: "pd.Series[bool]"
    gmacs: float
    threshold: float | None = None
    exit_fraction: float | None = None
    met: bool = True


class Row(NamedTuple):
    """One model run in one way, against another one: see `Comparison`.

    gmacs, other_gmacs: means over seeds. cost: percent of the other's; cost_spread: over seeds.
    thresholds, exits (percent): of each seed, None without one. unmet: seeds without a threshold
    that did on the calibration part what was asked for.
    """

    way: str
    seeds: int
    comparison: Comparison
    gmacs: float
    other_gmacs: float
    cost: float
    cost_spread: float | None
    thresholds: list[float] | None
    exits: float | None
    unmet: int


def against(
    ours: Sequence[Evaluated],
    theirs: Sequence[Evaluated],
    way: str = "both",
    their_way: str = "both",
) -> Row:
    """Compare two models over their seeds.

    Args:
        ours, theirs: one entry per seed, the same seeds in the same order.
        way: see `WAYS`; a one-pass model has one, whatever it is called.
        their_way: of the other model: first, both or calibrated.

    Raises:
        DataError: other images, or another number of seeds.
    """
    other = [at(each, their_way) for each in theirs]
    mine = [at(each, way, than) for each, than in zip(ours, other, strict=False)]
    found = compare([p.right for p in mine], [p.right for p in other])
    costs = [100 * p.gmacs / than.gmacs for p, than in zip(mine, other, strict=True)]
    etas = [p.threshold for p in mine if p.threshold is not None]
    exits = [100 * p.exit_fraction for p in mine if p.exit_fraction is not None]
    return Row(
        way=WAYS[way] if ours[0].evaluation["second"] is not None else "one pass",
        seeds=len(mine),
        comparison=found,
        gmacs=fmean(p.gmacs for p in mine),
        other_gmacs=fmean(p.gmacs for p in other),
        cost=fmean(costs),
        cost_spread=stdev(costs) if len(costs) > 1 else None,
        thresholds=etas or None,
        exits=fmean(exits) if exits else None,
        unmet=sum(not p.met for p in mine),
    )


def at(model: Evaluated, way: str, other: Point | None = None) -> Point:
    """One seed of a model, run in one way."""
    found, rows = model
    if found["second"] is None:
        return Point(correct_at(rows), found["first"]["gmacs"])
    if way in ("first", "both"):
        end = found["first" if way == "first" else "second"]
        return Point(correct_at(rows, 0.0 if way == "first" else NO_EXIT), end["gmacs"])
    share, seed = found["calibration"]["share"], found["calibration"]["seed"]
    chosen, rest = (rows.iloc[part] for part in stratified_split(rows["target"], share, seed))
    if way == "calibrated":
        point = found["calibrated"]
        eta = point["threshold"]
        return Point(correct_at(rest, eta), point["gmacs"], eta, point["exit_fraction"])
    assert other is not None
    macs = [
        1e9 * found["first"]["gmacs"],
        1e9 * (found["second"]["gmacs"] - found["first"]["gmacs"]),
    ]
    asked = {"max_gmacs": BUDGET * other.gmacs}
    if way == "equal":  # a hair less is the same count of images
        asked = {"min_top1": max(0.0, 100 * float(other.right.loc[chosen.index].mean()) - 1e-9)}
    rules = EvaluationSettings(max_loss=None, risk=None, **asked)
    ((_, eta, reason),) = choose_thresholds(chosen, macs, rules)
    if eta is None:
        eta = NO_EXIT if way == "equal" else 0.0
    (reported,) = sweep(rest, macs, [eta]).to_dict("records")
    right = correct_at(rest, eta)
    return Point(right, reported["gmacs"], eta, reported["exit_fraction"], reason is None)


def verdict(row: Row) -> str:
    """The interval over images in words."""
    found = row.comparison
    if found.low > 0:
        return "more accurate"
    return "less accurate" if found.high < 0 else "no difference shown"


def equal_accuracy(equal: Row, budget: Row) -> str:
    """Whether equal accuracy costs at most `BUDGET`, in sentences, from two rows of one model."""
    share, spread = f"{100 * BUDGET:.0f} %", equal.cost_spread
    cost = f"{equal.cost:.0f} %" + ("" if spread is None else f" (± {spread:.0f} over seeds)")
    lacking = (
        f" In {equal.unmet} of {equal.seeds} seeds no threshold reached the other model's accuracy "
        "on the calibration part; there both passes were taken."
        if equal.unmet
        else ""
    )
    at_budget = budget.comparison
    if equal.comparison.high < 0 or equal.unmet == equal.seeds:
        short = f"Equal accuracy is not reached at any threshold, so not at {share} either."
    elif equal.cost <= 100 * BUDGET and equal.comparison.low >= -MARGIN:
        short = f"Yes: equal accuracy, within {MARGIN:g} point, costs {share} or less here."
    elif equal.cost <= 100 * BUDGET:
        short = (
            f"Probably: equal accuracy was found at {share} or less, but too few images to exclude "
            f"a loss of more than {MARGIN:g} point."
        )
    elif at_budget.high < 0:
        short = f"No: equal accuracy costs more than {share} here."
    else:
        short = f"Not decided: equal accuracy costs more, but at {share} no loss is shown either."
    return (
        f"{short} The threshold chosen for equal accuracy costs {cost} of the one-pass model's "
        f"GMACs and differs by {difference(equal)}.{lacking} Within {share} of the cost (met: "
        f"{budget.cost:.0f} %), it differs by {difference(budget)}."
    )


def difference(row: Row) -> str:
    """Points of top-1 with their interval and spread."""
    found = row.comparison
    spread = "" if found.spread is None else f", ± {found.spread:.2f} over {row.seeds} seeds"
    return (
        f"{found.difference:+.2f} points (95 % over images: {found.low:+.2f} to "
        f"{found.high:+.2f}{spread})"
    )

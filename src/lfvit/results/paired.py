"""Trained models against each other, image by image and seed by seed, from their files."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from lfvit.errors import DataError
from lfvit.measure.paired import compare
from lfvit.measure.schemas import Evaluation, OperatingPoint
from lfvit.measure.thresholds import NO_EXIT, correct_at, stratified_split, sweep

if TYPE_CHECKING:
    from lfvit.results.collect import Run

BUDGET = 0.37
"""Of the one-pass model's cost: LF-ViT's paper reports DeiT-S's accuracy at 63 % fewer FLOPs."""

WAYS = {
    "first": "pass 1",
    "both": "last pass",
    "calibrated": "early exit, max_loss",
    "equal": "early exit, for equal accuracy",
    "budget": f"early exit, within {100 * BUDGET:.0f} % of the cost",
}
"""Ways to run a model of several passes. The last three choose a threshold, and are compared on
images that it was not chosen on. That of max_loss is the evaluation's, chosen on its calibration
images; the last two are chosen for the model compared with, twice: these images are run with the
threshold of the others, and the others with theirs (cross-fitting), so that all of them count."""


class Point(NamedTuple):
    """One seed of a model run in one way. correct: by image. gmacs: per image."""

    correct: "pd.Series[bool]"
    gmacs: float
    exit_fraction: float | None = None


def compare_models(
    ours: Sequence["Run"], theirs: Sequence["Run"], way: str = "both", their_way: str = "both"
) -> dict[str, Any]:
    """Compare two models over their seeds.

    Args:
        ours, theirs: one run per seed, the same seeds in the same order.
        way: see `WAYS`; a model with one pass has one.
        their_way: of the other model: first, both or calibrated.

    Returns:
        The fields of `lfvit.measure.paired.Comparison`; way, in words; p, the largest of the seeds;
        gmacs, mean over seeds; cost, percent of the other's; exits, percent; and verdict, the
        interval over images in words.

    Raises:
        DataError: no predictions.parquet, other images, or another number of seeds.
    """
    other = [point_at(run, their_way) for run in theirs]
    points = [point_at(run, way, than) for run, than in zip(ours, other, strict=False)]
    comparison = compare([p.correct for p in points], [p.correct for p in other])
    exits = [100 * p.exit_fraction for p in points if p.exit_fraction is not None]
    verdict = "less accurate" if comparison.high < 0 else "no difference shown"
    return {
        "way": WAYS[way] if ours[0].num_passes > 1 else WAYS["first"],
        **comparison._asdict(),
        "p": max(comparison.p_values),
        "gmacs": fmean(p.gmacs for p in points),
        "cost": fmean(100 * p.gmacs / o.gmacs for p, o in zip(points, other, strict=True)),
        "exits": fmean(exits) if exits else None,
        "verdict": "more accurate" if comparison.low > 0 else verdict,
    }


def calibrated(evaluation: Evaluation) -> OperatingPoint | None:
    """The operating point of the rule max_loss, if it has a threshold."""
    points = evaluation.operating_points
    return next((p for p in points if p.rule.startswith("max_loss") and p.top1 is not None), None)


def ways_of(runs: Sequence["Run"]) -> list[str]:
    """The ways to run a model that all of its evaluations know."""
    if runs[0].num_passes == 1:
        return ["both"]
    return list(WAYS) if all(calibrated(run.evaluation) for run in runs) else ["first", "both"]


def point_at(run: "Run", way: str, other: Point | None = None) -> Point:
    """One seed of a model, run in one way, see `WAYS`; `other` is what it is compared with."""
    evaluation, predictions = run.evaluation, run.predictions
    if run.num_passes == 1 or way == "both":
        return Point(correct_at(predictions, NO_EXIT), evaluation.passes[-1].gmacs)
    if way == "first":
        return Point(correct_at(predictions, 0.0), evaluation.passes[0].gmacs)
    rules = evaluation.settings
    split = stratified_split(predictions["target"], rules.calibration, rules.calibration_seed)
    calibration, rest = (predictions.iloc[part] for part in split)
    gmacs = [found.gmacs for found in evaluation.passes]
    macs = [1e9 * (last - before) for before, last in pairwise([0.0, *gmacs])]
    if way == "calibrated":
        point = calibrated(evaluation)
        if point is None or point.threshold is None:
            raise DataError("no threshold was chosen; evaluate with max_loss=0.5")
        parts = [(rest, point.threshold)]
    else:
        assert other is not None
        halves = ((rest, calibration), (calibration, rest))
        parts = [(part, _choose(chosen_on, macs, way, other)) for part, chosen_on in halves]
    measured = pd.concat([sweep(part, macs, [threshold]) for part, threshold in parts])
    means = measured[["gmacs", "exit_fraction"]].T @ [len(part) for part, _ in parts]
    means /= sum(len(part) for part, _ in parts)
    correct = pd.concat([correct_at(part, threshold) for part, threshold in parts])
    return Point(correct, float(means["gmacs"]), float(means["exit_fraction"]))


def _choose(calibration: pd.DataFrame, macs: Sequence[float], way: str, other: Point) -> float:
    """The threshold for equal accuracy or for the budget.

    Equal: the cheapest threshold as accurate as the other model on the calibration images, else the
    most accurate. Budget: the most accurate threshold within `BUDGET`, else the cheapest.
    """
    curve = sweep(calibration, macs)
    by_accuracy = curve.sort_values(["top1", "gmacs"], ascending=[False, True], kind="stable")
    by_cost = curve.sort_values("gmacs", kind="stable")
    if way == "equal":
        # both are counts of the same images: a hair less is the same count
        wanted = 100 * float(other.correct.loc[calibration.index].mean()) - 1e-9
        good, best = by_cost[by_cost["top1"] >= wanted], by_accuracy
    else:
        good, best = by_accuracy[by_accuracy["gmacs"] <= BUDGET * other.gmacs], by_cost
    return float((best if good.empty else good)["threshold"].iloc[0])

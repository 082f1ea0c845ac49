"""The one table of operating points: every pass, the configured threshold, and every rule."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from lfvit.measure.risk import certified_threshold, images_needed
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.thresholds import (
    NO_EXIT,
    default_thresholds,
    pass_columns,
    stratified_split,
    sweep,
)

Choice = tuple[str, float | None, str | None]
"""Rule, threshold, and the reason why there is none."""


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
    classes, _ = pass_columns(predictions)
    last = sweep(predictions, macs, [NO_EXIT]).iloc[0]
    whole = {"images": len(predictions), "chosen_on": 0, "reference_top1": last["top1"]}
    rows: list[dict[str, Any]] = []
    for i in range(classes.shape[1]):
        final = i == classes.shape[1] - 1
        rows.append(
            {
                "rule": f"pass {i + 1}",
                "threshold": None,
                "top1": 100 * float((classes[:, i] == predictions["target"]).mean()),
                "exit_fraction": 0.0 if final else 1.0,
                "gmacs": sum(macs[: i + 1]) / 1e9,
                "consistency": float((classes[:, i] != classes[:, -1]).mean()),
                **whole,
            }
        )
    if classes.shape[1] > 1:
        if rules.threshold is not None:
            point = sweep(predictions, macs, [rules.threshold]).iloc[0].to_dict()
            rows.append({"rule": "threshold", **point, **whole})
        split = stratified_split(predictions["target"], rules.calibration, rules.calibration_seed)
        chosen, rest = (predictions.iloc[part] for part in split)
        reference = sweep(rest, macs, [NO_EXIT]).iloc[0]["top1"]
        held_out = {"images": len(rest), "chosen_on": len(chosen), "reference_top1": reference}
        for rule, threshold, reason in choose_thresholds(chosen, macs, rules):
            point = {} if threshold is None else sweep(rest, macs, [threshold]).iloc[0].to_dict()
            rows.append({"rule": rule, **point, "reason": reason, **held_out})
    names = ["rule", "threshold", "top1", "exit_fraction", "gmacs", "consistency"]
    table = pd.DataFrame(rows, columns=[*names, "images", "chosen_on", "reason", "reference_top1"])
    return table.astype(object).where(table.notna(), None)


def choose_thresholds(
    calibration: pd.DataFrame, macs: Sequence[float], rules: EvaluationSettings
) -> Iterator[Choice]:
    """The threshold of every rule, from the calibration images alone."""
    grid = default_thresholds()
    curve = sweep(calibration, macs, grid)
    best = curve["top1"].max()
    # every threshold that changes anything: the confidences before the last pass
    _, confidence = pass_columns(calibration)
    steps = sweep(calibration, macs, [*sorted({*confidence[:, :-1].ravel().tolist()}), NO_EXIT])
    if rules.max_loss is not None:
        good = curve[curve["top1"] >= curve["top1"].iloc[-1] - rules.max_loss]
        yield f"max_loss={rules.max_loss:g}", good.loc[good["gmacs"].idxmin(), "threshold"], None
    if rules.max_gmacs is not None:
        within = steps[steps["gmacs"] <= rules.max_gmacs * (1 + 1e-9)]
        rule = f"max_gmacs={rules.max_gmacs:g}"
        if within.empty:
            yield rule, None, f"the first pass alone costs {macs[0] / 1e9:.4g} GMACs"
        else:  # the grid, and the threshold that spends the budget to the full
            spent = within.loc[within["gmacs"].idxmax(), "threshold"]
            points = sweep(calibration, macs, [spent, *grid])
            points = points[points["gmacs"] <= rules.max_gmacs * (1 + 1e-9)]
            ordered = points.sort_values(["top1", "gmacs"], ascending=[False, True], kind="stable")
            yield rule, ordered["threshold"].iloc[0], None
    if rules.min_top1 is not None:
        good = curve[curve["top1"] >= rules.min_top1]
        rule = f"min_top1={rules.min_top1:g}"
        if good.empty:
            yield rule, None, f"no threshold reaches more than {best:.2f} %"
        else:
            yield rule, good.loc[good["gmacs"].idxmin(), "threshold"], None
    if rules.max_second is not None:
        good = steps[1 - steps["exit_fraction"] <= rules.max_second + 1e-9]
        yield f"max_second={rules.max_second:g}", good["threshold"].max(), None
    if rules.risk is not None:
        for loss in rules.risk.losses:
            for eps in rules.risk.eps:
                threshold = certified_threshold(calibration, loss, eps, rules.risk.delta)
                needed = images_needed(eps, rules.risk.delta)
                reason = f"needs at least {needed} calibration images"
                yield f"{loss}<={eps:g}", threshold, reason if threshold is None else None

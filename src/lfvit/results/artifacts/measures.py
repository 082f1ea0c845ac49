"""The columns of artifacts: what a row is labelled with, and what is computed for it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Evaluation = Mapping[str, Any]
"""The contents of an evaluate.json."""

ETAS = [round(0.05 * step, 2) for step in range(21)]
"""Thresholds that figures show."""
LABELS = {
    "model": "model",
    "way": "run",
    "method": "method",
    "name": "setting",
    "resolution": "resolution",
    "tokens": "tokens",
    "m": "m",
    "eta": "η",
    "alpha": "α",  # noqa: RUF001
    "beta": "β",
    "selector": "selector",
    "image": "image",
    "loss": "loss",
    "reuse": "reuse",
    "to": "added to",
}
"""Labels of rows and their titles. The published row of the same labels stands beside ours."""


class Measure(NamedTuple):
    """A computed column.

    of: evaluation and operating point -> value, None where there is none; None itself for what is
    not in an evaluation. comparable: whether a difference from the published figure means anything.
    """

    title: str
    unit: str | None
    digits: int
    of: Callable[[Evaluation, Mapping[str, Any]], float | None] | None
    comparable: bool = True


def _share(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _second_share(evaluation: Evaluation, point: Mapping[str, Any]) -> float | None:
    exits = point.get("exit_fraction")
    return None if exits is None else 100 * (1 - exits)


MEASURES: dict[str, Measure] = {
    "top1": Measure("top-1", "%", 2, lambda _, point: point["top1"]),
    "gmacs": Measure("GMACs", "GMAC", 4, lambda _, point: point["gmacs"]),
    "first": Measure("first pass top-1", "%", 2, lambda found, _: found["first"]["top1"]),
    "second": Measure(
        "second pass top-1",
        "%",
        2,
        lambda found, _: None if found["second"] is None else found["second"]["top1"],
    ),
    "exits": Measure("answered early", "%", 1, lambda _, point: _share(point.get("exit_fraction"))),
    "second_share": Measure("second passes", "%", 1, _second_share),
    "threshold": Measure("η chosen", None, 2, lambda _, point: point.get("threshold")),
    "throughput": Measure("images/s", "images/s", 0, None, comparable=False),
}


def operating_point(evaluation: Evaluation, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an evaluation that a row is about.

    ``eta``: both passes with this threshold. ``at``: "first", "both", or "calibrated", a threshold
    chosen on other images. Neither: the last pass there is.
    """
    if row.get("eta") is not None:
        return next(p for p in evaluation["curve"] if abs(p["threshold"] - row["eta"]) < 1e-6)
    if row.get("at") == "calibrated":
        point: Mapping[str, Any] = evaluation["calibrated"]
        return point
    last = evaluation["first"] if evaluation["second"] is None else evaluation["second"]
    point = evaluation["first"] if row.get("at") == "first" else last
    return point


def labels_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a row, without how it is made."""
    return {key: value for key, value in row.items() if key in LABELS}

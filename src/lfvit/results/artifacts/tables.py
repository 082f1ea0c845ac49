"""The columns and rows of artifacts, from the evaluations of finished runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from lfvit.errors import DataError
from lfvit.measure.schemas import CurvePoint, Evaluation, OperatingPoint
from lfvit.results.artifacts.settings import Artifact, Row, Scale
from lfvit.results.collect import Run

Rows = list[dict[str, Any]]
Point = OperatingPoint | CurvePoint

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
"""Labels of rows, in the order of their columns, and the titles of these."""


class Measure(NamedTuple):
    """A computed column: its title, unit and digits, and its value at an operating point.

    comparable: whether a difference from the published figure means anything.
    """

    title: str
    unit: str | None
    digits: int
    value: Callable[[Evaluation, Point], float | None]
    comparable: bool = True


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _localised(evaluation: Evaluation, key: str) -> float | None:
    where = evaluation.localisation
    return None if where is None else 100 * getattr(where.region, key)


MEASURES = {
    "top1": Measure("top-1", "%", 2, lambda _, point: point.top1),
    "gmacs": Measure("GMACs", "GMAC", 4, lambda _, point: point.gmacs),
    "first": Measure("first pass top-1", "%", 2, lambda e, _: e.passes[0].top1),
    "second": Measure(
        "second pass top-1", "%", 2, lambda e, _: e.passes[1].top1 if len(e.passes) > 1 else None
    ),
    "exits": Measure("answered early", "%", 1, lambda _, p: _percent(p.exit_fraction)),
    "second_share": Measure(
        "second passes",
        "%",
        1,
        lambda _, p: None if p.exit_fraction is None else 100 * (1 - p.exit_fraction),
    ),
    "threshold": Measure("η chosen", None, 2, lambda _, point: point.threshold),
    "covered": Measure("object covered", "%", 1, lambda e, _: _localised(e, "covered")),
    "whole": Measure("whole object covered", "%", 1, lambda e, _: _localised(e, "whole")),
    "throughput": Measure("images/s", "images/s", 0, lambda *_: None, comparable=False),
}


@dataclass(frozen=True)
class Results:
    """What the runs of a scale gave.

    Attributes:
        scale: its settings.
        runs: name of a run -> one for each seed.
        failed, left_out: name of a run -> why it is not in `runs`.
        starts: name of a run -> a sentence about the weights that it started from.
    """

    scale: Scale
    runs: Mapping[str, list[Run]]
    failed: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[str, str] = field(default_factory=dict)

    def of(self, row: Row) -> list[Run]:
        """All seeds of a row's run; none where it is missing."""
        return self.runs.get(row.run, [])

    def first(self, row: Row) -> Run | None:
        """The first seed."""
        return next(iter(self.of(row)), None)

    def source(self, row: Row) -> str:
        """Where the figures of a row come from."""
        if row.run in self.runs:
            return "measured"
        return "failed" if row.run in self.failed else "left out"


@dataclass
class Table:
    """What an artifact shows.

    Attributes:
        columns: see `column`.
        rows: values by the columns' keys; None where there is none.
        notes: sentences under it.
        plot: draws it into the given files; None where there is nothing to draw.
        timings: rows of benchmark.json, of what was timed for it.
    """

    columns: list[dict[str, Any]]
    rows: Rows
    notes: list[str] = field(default_factory=list)
    plot: Callable[[Sequence[Path]], None] | None = None
    timings: Rows = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [{c["key"]: row.get(c["key"]) for c in self.columns} for row in self.rows]


def column(key: str, title: str, unit: str | None = None, digits: int = 0) -> dict[str, Any]:
    """One column: the key of its values in the rows, and how they are shown."""
    return {"key": key, "title": title, "unit": unit, "digits": digits}


def measure_columns(*keys: str) -> list[dict[str, Any]]:
    """Columns of measures, without the paper's."""
    return [column(k, MEASURES[k].title, MEASURES[k].unit, MEASURES[k].digits) for k in keys]


SOURCE = column("source", "source")


def operating_point(evaluation: Evaluation, row: Row) -> Point:
    """The operating point that a row is about: at its eta, of its rule, or of the last pass.

    Raises:
        DataError: the evaluation has none of that rule.
    """
    if row.eta is not None and evaluation.curve:
        eta = row.eta
        return min(evaluation.curve, key=lambda point: abs(point.threshold - eta))
    rule = row.at or f"pass {len(evaluation.passes)}"
    point = evaluation.point(rule)
    if point is None:
        rules = ", ".join(point.rule for point in evaluation.operating_points)
        raise DataError(f"{evaluation.checkpoint}: no operating point {rule!r}; there are {rules}")
    return point


def make_table(
    artifact: Artifact, results: Results, speeds: Mapping[int, float] | None = None
) -> Table:
    """Every published row with ours beside it, in the paper's order, then what only we have.

    Args:
        speeds: index of a row -> images per second, where that is measured.
    """
    ours: Rows = []
    for index, row in enumerate(artifact.rows):
        values = {**row.labels, "source": results.source(row)}
        values |= _over_seeds(row, artifact.measures, results)
        if speeds and index in speeds:
            values["throughput"] = speeds[index]
        ours.append(values)
    left = list(range(len(ours)))
    rows: Rows = []
    for paper in artifact.published_rows():
        same = (i for i in left if artifact.rows[i].labels.items() <= paper.items())
        match = next(same, None)
        labels = {key: paper[key] for key in LABELS if key in paper}
        row = {**labels, "source": "published only"} if match is None else ours[match]
        left = [i for i in left if i != match]
        rows.append({**row, **_published(row, paper, artifact, results.scale.comparable)})
    rows += [ours[i] for i in left]
    return Table(_columns(artifact.measures, rows), rows)


def _over_seeds(row: Row, measures: Sequence[str], results: Results) -> dict[str, Any]:
    """Means over seeds, and their sample standard deviations as ``_spread``."""
    values: dict[str, Any] = {}
    evaluations = [run.evaluation for run in results.of(row)]
    for key in measures:
        per_seed = [MEASURES[key].value(e, operating_point(e, row)) for e in evaluations]
        known = [value for value in per_seed if value is not None]
        values[key] = fmean(known) if known else None
        if len(known) > 1:
            values[f"{key}_spread"] = stdev(known)
    return values


def _published(
    row: Mapping[str, Any], paper: Mapping[str, Any], artifact: Artifact, comparable: bool
) -> dict[str, Any]:
    """The published measures, and ours minus theirs at a comparable scale."""
    values: dict[str, Any] = {}
    for key in artifact.measures:
        ours, theirs = row.get(key), paper.get(key)
        values[f"{key}_paper"] = theirs
        if comparable and MEASURES[key].comparable and None not in (ours, theirs):
            values[f"{key}_difference"] = ours - theirs
    return values


def _columns(measures: Sequence[str], rows: Rows) -> list[dict[str, Any]]:
    """Labels, measures, and what stands beside a measure in any row."""
    columns = [column(key, title) for key, title in LABELS.items() if any(key in r for r in rows)]
    for entry in measure_columns(*measures):
        columns.append(entry)
        beside = {
            "spread": ("±", entry["digits"]),
            "paper": ("paper", 1 if entry["unit"] == "%" else min(entry["digits"], 2)),
            "difference": ("difference", entry["digits"]),
        }
        for suffix, (title, digits) in beside.items():
            key = f"{entry['key']}_{suffix}"
            if any(row.get(key) is not None for row in rows):
                title = f"{entry['title']}, {title}"
                columns.append(column(key, title, entry["unit"], digits))
    return [*columns, SOURCE]

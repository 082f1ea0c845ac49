"""The columns and rows of artifacts, from the evaluations of finished runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from lfvit.errors import DataError
from lfvit.measure.schemas import CurvePoint, Evaluation, OperatingPoint
from lfvit.results.artifacts.files import Column
from lfvit.results.artifacts.settings import LABELS, Artifact, Row, Scale
from lfvit.results.collect import Run

Rows = list[dict[str, Any]]
Point = OperatingPoint | CurvePoint


class Measure(NamedTuple):
    """A computed column: its title, unit and digits, and its value at an operating point."""

    title: str
    unit: str | None
    digits: int
    value: Callable[[Evaluation, Point], float | None]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _pass_top1(evaluation: Evaluation, index: int) -> float | None:
    return evaluation.passes[index].top1 if index < len(evaluation.passes) else None


MEASURES = {
    "top1": Measure("top-1", "%", 2, lambda _, p: p.top1),
    "gmacs": Measure("GMACs", "GMAC", 4, lambda _, p: p.gmacs),
    "gmacs_std": Measure("over images", "GMAC", 4, lambda e, _: e.passes[-1].gmacs_std),
    "first": Measure("first pass top-1", "%", 2, lambda e, _: _pass_top1(e, 0)),
    "second": Measure("second pass top-1", "%", 2, lambda e, _: _pass_top1(e, 1)),
    "exits": Measure("answered early", "%", 1, lambda _, p: _percent(p.exit_fraction)),
    "threshold": Measure("η chosen", None, 2, lambda _, p: p.threshold),
    "covered": Measure(
        "object covered",
        "%",
        1,
        lambda e, _: None if e.localisation is None else 100 * e.localisation.region.covered,
    ),
    "throughput": Measure("images/s", "images/s", 0, lambda *_: None),  # measured apart
}


@dataclass(frozen=True)
class Results:
    """What the runs of a scale gave.

    Attributes:
        scale: its settings.
        runs: name of a run -> one for each seed.
        failed, left_out: name of a run -> why it is not in `runs`.
        starts: name of a run -> the weights that it started from, in words.
    """

    scale: Scale
    runs: dict[str, list[Run]]
    failed: dict[str, str]
    left_out: dict[str, str]
    starts: dict[str, str]

    def of(self, row: Row) -> list[Run]:
        """All seeds of a row's run; none where it is missing."""
        return self.runs.get(row.run, [])

    def source(self, row: Row) -> str:
        """Where the figures of a row come from."""
        if row.run in self.runs:
            return "measured"
        return "failed" if row.run in self.failed else "left out"


@dataclass
class Table:
    """What an artifact shows.

    Attributes:
        columns, rows, notes: see `lfvit.results.artifacts.files.ArtifactFile`.
        plot: draws it into the given files, with a footnote; None where there is nothing to draw.
        timings: rows of benchmark.json, of what was timed for it.
    """

    columns: list[Column]
    rows: Rows
    notes: list[str] = field(default_factory=list)
    plot: Callable[[Sequence[Path], str], None] | None = None
    timings: Rows = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [{c.key: row.get(c.key) for c in self.columns} for row in self.rows]


def measure_columns(*keys: str) -> list[Column]:
    """Columns of measures, without the paper's."""
    return [Column(key, *MEASURES[key][:3]) for key in keys]


SOURCE = Column("source", "source")


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

    Differences from the published figures are given at a comparable scale.

    Args:
        speeds: index of a row -> images per second, where that is measured.
    """
    ours: Rows = []
    for index, row in enumerate(artifact.rows):
        values = {**row.labels, "source": results.source(row)}
        for key in artifact.measures:
            values |= _over_seeds(key, row, results.of(row))
        if speeds and index in speeds:
            values["throughput"] = speeds[index]
        ours.append(values)
    left = list(range(len(ours)))
    rows: Rows = []
    for paper in artifact.published_rows():
        match = next((i for i in left if artifact.rows[i].labels.items() <= paper.items()), None)
        left = [i for i in left if i != match]
        labels = {key: paper[key] for key in LABELS if key in paper}
        values = {**labels, "source": "published only"} if match is None else ours[match]
        for key in artifact.measures:
            mine, theirs = values.get(key), paper.get(key)
            values[f"{key}_paper"] = theirs
            compared = results.scale.comparable and key != "throughput"
            if compared and mine is not None and theirs is not None:
                values[f"{key}_difference"] = mine - theirs
        rows.append(values)
    rows += [ours[i] for i in left]
    columns = [Column(key, title) for key, title in LABELS.items() if any(key in r for r in rows)]
    for entry in measure_columns(*artifact.measures):
        columns.append(entry)
        for suffix, title in (("spread", "±"), ("paper", "paper"), ("difference", "difference")):
            name, digits = f"{entry.key}_{suffix}", entry.digits
            if suffix == "paper":  # as printed
                digits = 1 if entry.unit == "%" else min(digits, 2)
            if any(values.get(name) is not None for values in rows):
                columns.append(Column(name, f"{entry.title}, {title}", entry.unit, digits))
    return Table([*columns, SOURCE], rows)


def _over_seeds(key: str, row: Row, runs: Sequence[Run]) -> dict[str, float | None]:
    """Mean of a measure over seeds, and its sample standard deviation as ``_spread``."""
    points = [(run.evaluation, operating_point(run.evaluation, row)) for run in runs]
    values = [value for p in points if (value := MEASURES[key].value(*p)) is not None]
    spread = {f"{key}_spread": stdev(values)} if len(values) > 1 else {}
    return {key: fmean(values) if values else None, **spread}

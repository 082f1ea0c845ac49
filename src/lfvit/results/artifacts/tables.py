"""The columns and rows of artifacts, from the evaluations of finished runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lfvit.errors import DataError
from lfvit.measure.schemas import CurvePoint, Evaluation, OperatingPoint
from lfvit.measure.thresholds import NO_EXIT
from lfvit.results.artifacts.files import Column
from lfvit.results.artifacts.settings import LABELS, Artifact, Row, Scale
from lfvit.results.artifacts.throughput import images_per_second
from lfvit.results.collect import Run

Rows = list[dict[str, Any]]
Point = OperatingPoint | CurvePoint

MEASURES = {
    column.key: column
    for column in (
        Column("top1", "top-1", "%", 2),
        Column("gmacs", "GMACs", "GMAC", 4),
        Column("gmacs_std", "over images", "GMAC", 4),
        Column("first", "first pass top-1", "%", 2),
        Column("second", "second pass top-1", "%", 2),
        Column("exits", "answered early", "%", 1),
        Column("threshold", "η chosen", None, 2),
        Column("covered", "object covered", "%", 1),
        Column("throughput", "images/s", "images/s", 0),
    )
}
"""Columns that are computed, see `measure`; throughput is measured apart."""
SOURCE = Column("source", "source")


def measure(evaluation: Evaluation, point: Point) -> dict[str, float | None]:
    """`MEASURES` of a model at an operating point; those it has not are left out."""
    passes, where = evaluation.passes, evaluation.localisation
    values = {
        "top1": point.top1,
        "gmacs": point.gmacs,
        "gmacs_std": passes[-1].gmacs_std,
        "first": passes[0].top1,
        "exits": None if point.exit_fraction is None else 100 * point.exit_fraction,
        "threshold": point.threshold,
    }
    if len(passes) > 1:
        values["second"] = passes[1].top1
    return values if where is None else values | {"covered": 100 * where.region.covered}


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
    """

    columns: list[Column]
    rows: Rows
    notes: list[str] = field(default_factory=list)
    plot: Callable[[Sequence[Path], str], None] | None = None

    def __post_init__(self) -> None:
        self.rows = [{c.key: row.get(c.key) for c in self.columns} for row in self.rows]


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


def make_table(artifact: Artifact, results: Results) -> Table:
    """Every published row with ours beside it, in the paper's order, then what only we have.

    Differences from the published figures are given at a comparable scale.
    """
    speeds = _throughput(artifact, results) if "throughput" in artifact.measures else {}
    ours: Rows = []
    for index, row in enumerate(artifact.rows):
        values = {**row.labels, "source": results.source(row), "throughput": speeds.get(index)}
        evaluations = [run.evaluation for run in results.of(row)]
        measured = [measure(one, operating_point(one, row)) for one in evaluations]
        for key in artifact.measures:
            numbers = [value for one in measured if (value := one.get(key)) is not None]
            if numbers:
                values[key] = fmean(numbers)
            if len(numbers) > 1:
                values[f"{key}_spread"] = stdev(numbers)
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
    for entry in (MEASURES[key] for key in artifact.measures):
        columns.append(entry)
        for suffix, title in (("spread", "±"), ("paper", "paper"), ("difference", "difference")):
            name, digits = f"{entry.key}_{suffix}", entry.digits
            if suffix == "paper":  # as printed
                digits = 1 if entry.unit == "%" else min(digits, 2)
            if any(values.get(name) is not None for values in rows):
                columns.append(Column(name, f"{entry.title}, {title}", entry.unit, digits))
    return Table([*columns, SOURCE], rows)


def _throughput(artifact: Artifact, results: Results) -> dict[int, float]:
    """Index of a row -> images per second at its operating point, of the first seed."""
    cases: dict[int, tuple[Run, float]] = {}
    for index, row in enumerate(artifact.rows):
        for run in results.of(row)[:1]:
            point = operating_point(run.evaluation, row)
            alone = run.num_passes > 1 and row.at == "pass 1"
            default = 0.0 if alone else NO_EXIT
            cases[index] = run, default if point.threshold is None else point.threshold
    return images_per_second(cases, results.scale)

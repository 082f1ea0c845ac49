"""The columns and rows of an artifact, and how they are made for tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import DictConfig

from lfvit.results.artifacts.measures import (
    LABELS,
    MEASURES,
    Evaluation,
    labels_of,
    operating_point,
)
from lfvit.results.artifacts.probes import throughput
from lfvit.results.artifacts.spec import Artifact

MEASURED, PUBLISHED, FAILED, LEFT_OUT = "measured", "published only", "failed", "left out"
Rows = list[dict[str, Any]]


def column(key: str, title: str, unit: str | None = None, digits: int = 0) -> dict[str, Any]:
    """One column of an artifact: where its values are in the rows, and how they are shown."""
    return {"key": key, "title": title, "unit": unit, "digits": digits}


SOURCE = column("source", "source")


@dataclass
class Content:
    """What an artifact shows.

    columns: see `column`. rows: values by column key; None where there is none. notes: sentences.
    plot: draws it into the given files; None for a table, or where nothing could be drawn.
    timed: what was timed for it, see `throughput`.
    """

    columns: list[dict[str, Any]]
    rows: Rows
    notes: list[str] = field(default_factory=list)
    plot: Callable[[Sequence[Path]], None] | None = None
    timed: Rows = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """What the runs of a scale found.

    scale: its settings. evaluations: run -> one evaluate.json per seed; a run that failed or was
    left out is not in it. missing: run -> why, in words. failed: those that failed. origins: run ->
    how its weights came about, where they started from another run's. folder: where more can be
    written about the runs. folders: run -> of each evaluation, in the same order.
    """

    scale: DictConfig
    evaluations: Mapping[str, list[dict[str, Any]]]
    missing: Mapping[str, str]
    failed: frozenset[str]
    origins: Mapping[str, str]
    folder: Path
    folders: Mapping[str, list[Path]] = field(default_factory=dict)

    def of(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The evaluations of a row's run, one per seed; none where it is missing."""
        return self.evaluations.get(row["run"], [])

    def first(self, row: Mapping[str, Any]) -> Evaluation | None:
        """The evaluation of the first seed."""
        return next(iter(self.of(row)), None)

    def source(self, row: Mapping[str, Any]) -> str:
        """Where the figures of a row come from, in words."""
        if self.of(row):
            return MEASURED
        return FAILED if row["run"] in self.failed else LEFT_OUT


def table(artifact: Artifact, found: Findings) -> Content:
    """A row for every published row in its order, with ours beside it, then what only we have."""
    ours = [
        {"labels": labels_of(row), "source": found.source(row), **_measured(row, artifact, found)}
        for row in artifact.rows
    ]
    timed = _add_throughput(ours, artifact, found) if "throughput" in artifact.measures else []
    rows: Rows = []
    left = list(ours)
    for paper in artifact.published_rows():
        match = next((row for row in left if _same(row["labels"], paper)), None)
        if match is not None:
            left.remove(match)
        rows.append(_beside(match, paper, artifact, found))
    rows += [_beside(row, {}, artifact, found) for row in left]
    return Content(_columns(artifact, rows), rows, timed=timed)


def _same(labels: Mapping[str, Any], paper: Mapping[str, Any]) -> bool:
    return all(paper.get(key) == value for key, value in labels.items())


def _measured(row: Mapping[str, Any], artifact: Artifact, found: Findings) -> dict[str, Any]:
    """Means over seeds, and their spread: sample standard deviations."""
    values: dict[str, Any] = {}
    for key in artifact.measures:
        of = MEASURES[key].of
        if of is None:
            continue
        each = [of(evaluation, operating_point(evaluation, row)) for evaluation in found.of(row)]
        known = [value for value in each if value is not None]
        values[key] = fmean(known) if known else None
        if len(known) > 1:
            values[f"{key}_spread"] = stdev(known)
    return values


def _add_throughput(ours: Rows, artifact: Artifact, found: Findings) -> Rows:
    """Of the first seed.

    Returns:
        All that was timed: also both ends of every two-pass model, between which its speed at any
        other share of early answers lies.
    """
    cases = [
        (mine, evaluation, operating_point(evaluation, row))
        for mine, row in zip(ours, artifact.rows, strict=True)
        if (evaluation := found.first(row)) is not None
    ]
    if not cases:
        return []
    points = [(evaluation, point) for _, evaluation, point in cases]
    known = {id(point) for _, point in points}
    for evaluation in {id(evaluation): evaluation for evaluation, _ in points}.values():
        if evaluation["second"] is not None:
            ends = (evaluation["first"], evaluation["second"])
            points += [(evaluation, end) for end in ends if id(end) not in known]
    scale = found.scale
    options = scale.speed_precision, scale.speed_compile
    timed = throughput(points, scale.speed_images, scale.speed_repeats, *options)
    for (mine, _, _), row in zip(cases, timed, strict=False):
        mine["throughput"] = row["images_per_second"]
    return timed


def _beside(
    ours: Mapping[str, Any] | None, paper: Mapping[str, Any], artifact: Artifact, found: Findings
) -> dict[str, Any]:
    """One row: labels, then for every measure ours, the paper's, and the difference."""
    labels = {key: paper[key] for key in LABELS if key in paper} if ours is None else ours["labels"]
    row = {**labels, "source": PUBLISHED if ours is None else ours["source"]}
    for key in artifact.measures:
        mine, theirs = (ours or {}).get(key), paper.get(key)
        row[key], row[f"{key}_paper"] = mine, theirs
        row[f"{key}_spread"] = (ours or {}).get(f"{key}_spread")
        comparable = found.scale.comparable and MEASURES[key].comparable
        if mine is None or theirs is None or not comparable:
            row[f"{key}_difference"] = None
        else:
            row[f"{key}_difference"] = mine - theirs
    return row


def _columns(artifact: Artifact, rows: Rows) -> list[dict[str, Any]]:
    """Labels and measures, without columns that are empty, and with them dropped from the rows."""
    columns = [column(key, title) for key, title in LABELS.items() if any(key in r for r in rows)]
    for key in artifact.measures:
        measure = MEASURES[key]
        columns.append(column(key, measure.title, measure.unit, measure.digits))
        for suffix, title in (("spread", "±"), ("paper", "paper"), ("difference", "difference")):
            name = f"{key}_{suffix}"
            if any(row[name] is not None for row in rows):
                digits = 1 if measure.unit == "%" else min(measure.digits, 2)
                digits = digits if suffix == "paper" else measure.digits
                columns.append(column(name, f"{measure.title}, {title}", measure.unit, digits))
    columns.append(SOURCE)
    kept = [entry["key"] for entry in columns]
    rows[:] = [{key: row.get(key) for key in kept} for row in rows]
    return columns


def measure_columns(*keys: str) -> list[dict[str, Any]]:
    """Columns of measures, in the order of `MEASURES`."""
    return [column(key, m.title, m.unit, m.digits) for key, m in MEASURES.items() if key in keys]


def labelled(draw: Callable[..., None], found: Findings, *content: Any) -> None:
    """Draw with the scale's label under the figure; the last of the content is the files."""
    *given, paths = content
    draw(*given, paths, found.scale.label)

"""An artifact of differences: models beside yardsticks, image by image and seed by seed."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from lfvit.results.artifacts.content import SOURCE, Content, Findings, Rows, column
from lfvit.results.artifacts.measures import LABELS, labels_of
from lfvit.results.artifacts.spec import Artifact
from lfvit.results.old.comparisons import Evaluated, Row, against, equal_accuracy, verdict
from lfvit.results.old.intervals import plot_differences

COLUMNS = (
    column("way", "run"),
    column("other", "beside"),
    column("top1", "top-1", "%", 2),
    column("other_top1", "top-1 of the other", "%", 2),
    column("difference", "difference", "points", 2),
    column("low", "95 %, from", "points", 2),
    column("high", "95 %, to", "points", 2),
    column("spread", "± over seeds", "points", 2),
    column("p", "McNemar p, largest of the seeds", None, 4),
    column("gmacs", "GMACs", "GMAC", 4),
    column("cost", "cost, share of the other", "%", 1),
    column("exits", "answered early", "%", 1),
    column("images", "images"),
    column("verdict", "in words"),
    SOURCE,
)
NOTE = (
    "Differences are taken image by image. 95 %: over images, for these models (bootstrap); ±: "
    "over seeds, on these images. Thresholds are chosen on one half of the images and reported "
    "on the other; where a row has fewer images than another, it is on that half."
)


def paired(artifact: Artifact, found: Findings) -> Content:
    """Every row beside every yardstick; a row and a yardstick that are the same run are not."""
    labels = [column(k, t) for k, t in LABELS.items() if any(k in r for r in artifact.rows)]
    columns = list({entry["key"]: entry for entry in [*labels, *COLUMNS]}.values())
    rows: Rows = []
    drawn: list[tuple[str, Row]] = []
    asked: dict[tuple[str, str], dict[str, Row]] = {}
    for yardstick, row in product(artifact.yardsticks, artifact.rows):
        if row["run"] == yardstick["run"]:
            continue
        name, other = row["model"], yardstick["model"]
        ours, theirs = _evaluated(row, found), _evaluated(yardstick, found)
        lacking = yardstick if ours and not theirs else row
        line = {**labels_of(row), "other": other, "source": found.source(lacking)}
        if ours and theirs:
            way = row.get("at", "both")
            compared = against(ours, theirs, way, yardstick.get("at", "both"))
            line |= _values(compared)
            drawn.append((f"{name}, {compared.way} - {other}", compared))
            asked.setdefault((name, other), {})[way] = compared
        rows.append({entry["key"]: line.get(entry["key"]) for entry in columns})
    notes = [NOTE]
    for (name, other), each in asked.items():
        if {"equal", "budget"} <= each.keys():
            notes.append(f"{name} beside {other}: {equal_accuracy(each['equal'], each['budget'])}")
    return Content(columns, rows, notes, partial(_draw, drawn, found) if drawn else None)


def _evaluated(row: Mapping[str, Any], found: Findings) -> list[Evaluated]:
    """All seeds of a row's run, or none where it is missing."""
    folders = found.folders.get(row["run"], [])
    return [
        Evaluated.read(evaluation, folder)
        for evaluation, folder in zip(found.of(row), folders, strict=True)
    ]


def _values(row: Row) -> dict[str, Any]:
    of = row.comparison
    return {
        "way": row.way,
        "top1": of.top1,
        "other_top1": of.other_top1,
        "difference": of.difference,
        "low": of.low,
        "high": of.high,
        "spread": of.spread,
        "p": max(of.p_values),
        "gmacs": row.gmacs,
        "cost": row.cost,
        "exits": row.exits,
        "images": of.images,
        "verdict": verdict(row),
    }


def _draw(rows: Sequence[tuple[str, Row]], found: Findings, paths: Sequence[Path]) -> None:
    plot_differences(rows, paths, found.scale.label)

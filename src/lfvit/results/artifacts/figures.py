"""The figures of artifacts that follow from evaluations: the numbers, and what draws them."""

from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from lfvit.measure.thresholds import early_exits
from lfvit.results.artifacts.files import Column
from lfvit.results.artifacts.settings import LABELS, Artifact, Row, Scale
from lfvit.results.artifacts.tables import (
    MEASURES,
    SOURCE,
    Results,
    Rows,
    Table,
    make_table,
    measure_columns,
    operating_point,
)
from lfvit.results.artifacts.throughput import make_timed_table
from lfvit.results.collect import Run
from lfvit.results.paired import compare_models
from lfvit.results.papers import published_rows
from lfvit.results.plots import (
    BLUE,
    COST,
    GREEN,
    ORANGE,
    Panel,
    plot_costs,
    plot_differences,
    plot_panels,
)

SERIES = {"frontier.adaptivenn_deit_s": "AdaptiveNN", "frontier.thinkingvit": "ThinkingViT"}
"""Names of published rows that do not say their model."""


def cost_curves(artifact: Artifact, results: Results) -> Table:
    """Accuracy against cost: models with early exit as curves, the others as points.

    With measures, a table of the rows; without, of every 0.05 of the threshold.
    """
    curves: dict[str, pd.DataFrame] = {}
    for row in artifact.rows:
        # rows of one model at several operating points are points on its curve
        alone = len({r.at for r in artifact.rows if r.run == row.run and r.title == row.title}) == 1
        if row.title not in curves and results.of(row):
            curves[row.title] = _curve(row, results, whole=row.at is None or not alone)
    papers: dict[str, Rows] = {}
    for source in artifact.published:
        for paper in published_rows(source):
            window = "" if paper.get("m") is None else f", m={paper['m']}"
            name = f"{paper.get('model') or SERIES.get(source, source)}{window} (paper)"
            point = {"threshold": paper.get("eta"), "top1": paper["top1"], "gmacs": paper["gmacs"]}
            if point not in papers.setdefault(name, []):
                papers[name].append(point)
    if artifact.measures:
        table = make_timed_table(artifact, results)
    else:
        sources = {row.title: results.source(row) for row in artifact.rows}
        ours: dict[str, Rows] = {name: [{}] for name in sources}
        for name, points in curves.items():
            ours[name] = points.astype(object).where(points.notna(), None).to_dict("records")
        rows = [
            {"model": name, "source": sources.get(name, "published only"), **point}
            for name, points in {**ours, **papers}.items()
            for point in points
        ]
        measures = measure_columns("top1", "gmacs", "exits")
        columns = [Column("model", "model"), Column("threshold", "η", None, 2), *measures, SOURCE]
        table = Table(columns, rows)
    if curves:
        beside = papers.items() if results.scale.comparable else ()
        published = {name: pd.DataFrame(points) for name, points in beside}
        table.plot = partial(plot_costs, curves, published=published)
    return table


def _curve(row: Row, results: Results, whole: bool) -> pd.DataFrame:
    """Means over seeds of threshold, top1, gmacs and exits along thresholds, or of one point."""
    frames = []
    for run in results.of(row):
        points: Any = [*run.evaluation.curve[::5], *run.evaluation.curve[-1:]]
        if not whole or not points:
            points = [operating_point(run.evaluation, row)]
        keys = ("threshold", "top1", "exit_fraction", "gmacs")
        frames.append(pd.DataFrame([{k: getattr(p, k) for k in keys} for p in points], dtype=float))
    mean = sum(frames[1:], frames[0]) / len(frames)
    mean["exits"] = 100 * mean["exit_fraction"]
    if len(mean) == 1:
        mean["threshold"] = float("nan")  # chosen for each seed: not a place on the axis
    return mean


def sweep(artifact: Artifact, results: Results) -> Table:
    """A table, drawn over one of its labels."""
    table = make_table(artifact, results)
    measured = [row for row in table.rows if row["source"] == "measured"]
    panels = [
        Panel(measured, (artifact.x, LABELS[artifact.x]), title, {key: (title, color)})
        for key, color in zip(artifact.y, (BLUE, GREEN, ORANGE), strict=False)
        for title in [f"{MEASURES[key].title} ({MEASURES[key].unit})"]
    ]
    if measured:
        table.plot = partial(plot_panels, [panels])
    return table


def passes(artifact: Artifact, scale: Scale, run: Run) -> Table:
    """Images that each pass answers correctly at every threshold."""
    lines = {
        "right_first": ("right in the first pass", BLUE),
        "right_second": ("right in the second pass", ORANGE),
    }
    columns = [
        Column("eta", "η", None, 2),
        *(Column(key, title, "%", 2) for key, (title, _) in lines.items()),
        *measure_columns("top1", "gmacs", "exits"),
    ]
    predictions, curve = run.predictions, run.evaluation.curve[:101:5]
    exit_pass, predicted = early_exits(predictions, [point.threshold for point in curve])
    right, first = predicted == predictions["target"].to_numpy(), exit_pass == 0  # (T, N)
    rows: Rows = [
        {
            "eta": point.threshold,
            "right_first": 100 * (right[i] & first[i]).mean(),
            "right_second": 100 * (right[i] & ~first[i]).mean(),
            "top1": point.top1,
            "gmacs": point.gmacs,
            "exits": 100 * point.exit_fraction,
        }
        for i, point in enumerate(curve)
    ]
    panels = [
        Panel(rows, ("eta", "threshold η"), "images (%)", lines),
        Panel(rows, ("gmacs", COST), "top-1 (%)", {"top1": ("early exit", GREEN)}),
    ]
    return Table(columns, rows, plot=partial(plot_panels, [panels]))


PAIRED_COLUMNS = (
    Column("way", "run"),
    Column("other", "beside"),
    Column("top1", "top-1", "%", 2),
    Column("other_top1", "top-1 of the other", "%", 2),
    Column("difference", "difference", "points", 2),
    Column("low", "95 %, from", "points", 2),
    Column("high", "95 %, to", "points", 2),
    Column("spread", "± over seeds", "points", 2),
    Column("p", "McNemar p, largest of the seeds", None, 4),
    Column("gmacs", "GMACs", "GMAC", 4),
    Column("cost", "cost, share of the other", "%", 1),
    Column("exits", "answered early", "%", 1),
    Column("images", "images"),
    Column("verdict", "in words"),
    SOURCE,
)


def paired(artifact: Artifact, results: Results) -> Table:
    """Every row beside every yardstick, image by image and seed by seed."""
    rows: Rows = []
    drawn: dict[str, dict[str, Any]] = {}
    for yardstick, row in product(artifact.yardsticks, artifact.rows):
        if row.run == yardstick.run:
            continue
        ours, theirs = results.of(row), results.of(yardstick)
        values: dict[str, Any] = {"model": row.title, "other": yardstick.title}
        values["source"] = results.source(yardstick if ours and not theirs else row)
        if ours and theirs:
            values |= compare_models(ours, theirs, row.at or "both", yardstick.at or "both")
            drawn[f"{row.title} - {yardstick.title}, {values['way']}"] = values
        rows.append(values)
    notes = [
        "Differences are taken image by image. 95 %: over images, for these models (bootstrap); ±: "
        "over seeds, on these images. Thresholds are chosen on one half of the images and reported "
        "on the other; where a row has fewer images than another, it is on that half."
    ]
    plot = partial(plot_differences, drawn) if drawn else None
    return Table([Column("model", "model"), *PAIRED_COLUMNS], rows, notes, plot)

"""The figures of artifacts that follow from evaluations: the numbers, and what draws them."""

from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from lfvit.measure.thresholds import early_exits
from lfvit.results.artifacts import plots
from lfvit.results.artifacts.settings import LABELS, Artifact, Row
from lfvit.results.artifacts.tables import (
    MEASURES,
    SOURCE,
    Results,
    Rows,
    Table,
    column,
    make_table,
    measure_columns,
    operating_point,
)
from lfvit.results.artifacts.throughput import make_timed_table
from lfvit.results.paired import PairedRow, compare_models, equal_accuracy, verdict
from lfvit.results.plots import BLUE, COST, GREEN, ORANGE, plot_differences

SERIES = {"frontier.adaptivenn_deit_s": "AdaptiveNN", "frontier.thinkingvit": "ThinkingViT"}
"""Names of published rows that do not say their model."""


def cost_curves(artifact: Artifact, results: Results) -> Table:
    """Accuracy against cost: models with early exit as curves, the others as points.

    With measures, a table of the rows; without, of every 0.05 of the threshold.
    """
    curves: dict[str, Rows] = {}
    for row in artifact.rows:
        # rows of one model at several operating points are points on its curve
        alone = len({r.at for r in artifact.rows if r.run == row.run and r.title == row.title}) == 1
        curves.setdefault(row.title, _curve(row, results, whole=row.at is None or not alone))
    papers: dict[str, Rows] = {}
    for source in artifact.published:
        for paper in artifact.model_copy(update={"published": [source]}).published_rows():
            window = "" if paper.get("m") is None else f", m={paper['m']}"
            name = f"{paper.get('model') or SERIES.get(source, source)}{window} (paper)"
            point = {key: paper.get(key) for key in ("eta", "top1", "gmacs")}
            if point not in papers.setdefault(name, []):
                papers[name].append(point)
    if artifact.measures:
        table = make_timed_table(artifact, results)
    else:
        sources = {row.title: results.source(row) for row in artifact.rows}
        rows = [
            {"model": name, "source": sources.get(name, "published only"), **point}
            for name, points in {**curves, **papers}.items()
            for point in points or [{}]
        ]
        measures = measure_columns("top1", "gmacs", "exits")
        columns = [column("model", "model"), column("eta", "η", None, 2), *measures, SOURCE]
        table = Table(columns, rows)
    drawn = {name: points for name, points in curves.items() if points}
    if drawn:
        table.plot = partial(plots.plot_costs, drawn, papers, results.scale)
    return table


def _curve(row: Row, results: Results, whole: bool) -> Rows:
    """Means over seeds of eta, top1, gmacs and exits along the thresholds, or of a row's point."""
    frames = []
    for run in results.of(row):
        points: Any = [*run.evaluation.curve[::5], *run.evaluation.curve[-1:]]
        if not whole or not points:
            points = [operating_point(run.evaluation, row)]
        keys = ("threshold", "top1", "exit_fraction", "gmacs")
        frames.append(pd.DataFrame([{k: getattr(p, k) for k in keys} for p in points], dtype=float))
    if not frames:
        return []
    mean = sum(frames[1:], frames[0]) / len(frames)
    mean["exits"] = 100 * mean["exit_fraction"]
    # a threshold chosen for each seed is not a place on the axis
    mean["eta"] = mean["threshold"] if len(mean) > 1 else None
    records: Any = mean.astype(object).where(mean.notna(), None).to_dict("records")
    return list(records)


def sweep(artifact: Artifact, results: Results) -> Table:
    """A table, drawn over one of its labels."""
    table = make_table(artifact, results)
    measured = [row for row in table.rows if row["source"] == "measured"]
    panels = [
        plots.Panel(measured, (artifact.x, LABELS[artifact.x]), title, {key: (title, colour)})
        for key, colour in zip(artifact.y, (BLUE, GREEN, ORANGE), strict=False)
        for title in [f"{MEASURES[key].title} ({MEASURES[key].unit})"]
    ]
    if measured:
        table.plot = partial(plots.plot_panels, panels, results.scale)
    return table


def passes(artifact: Artifact, results: Results) -> Table:
    """Images that each pass answers correctly at every threshold, of the first seed."""
    (row,) = artifact.rows
    columns = [
        column("eta", "η", None, 2),
        column("right_first", "right in the first pass", "%", 2),
        column("right_second", "right in the second pass", "%", 2),
        *measure_columns("top1", "gmacs", "exits"),
    ]
    runs = results.of(row)
    if not runs:
        return Table(columns, [])
    predictions, curve = runs[0].predictions, runs[0].evaluation.curve[:101:5]
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
    lines = {
        "right_first": ("right in the first pass", BLUE),
        "right_second": ("right in the second pass", ORANGE),
    }
    panels = [
        plots.Panel(rows, ("eta", "threshold η"), "images (%)", lines),
        plots.Panel(rows, ("gmacs", COST), "top-1 (%)", {"top1": ("early exit", GREEN)}),
    ]
    return Table(columns, rows, plot=partial(plots.plot_panels, panels, results.scale))


PAIRED_COLUMNS = (
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


def paired(artifact: Artifact, results: Results) -> Table:
    """Every row beside every yardstick, image by image and seed by seed."""
    rows: Rows = []
    drawn: list[tuple[str, PairedRow]] = []
    compared: dict[tuple[str, str], dict[str, PairedRow]] = {}
    for yardstick, row in product(artifact.yardsticks, artifact.rows):
        if row.run == yardstick.run:
            continue
        ours, theirs = results.of(row), results.of(yardstick)
        values: dict[str, Any] = {"model": row.title, "other": yardstick.title}
        values["source"] = results.source(yardstick if ours and not theirs else row)
        if ours and theirs:
            way = row.at or "both"
            pair = compare_models(ours, theirs, way, yardstick.at or "both")
            values |= {**pair.comparison._asdict(), **pair._asdict(), "verdict": verdict(pair)}
            values["p"] = max(pair.comparison.p_values)
            drawn.append((f"{row.title} - {yardstick.title}", pair))
            compared.setdefault((row.title, yardstick.title), {})[way] = pair
        rows.append(values)
    notes = [
        "Differences are taken image by image. 95 %: over images, for these models (bootstrap); ±: "
        "over seeds, on these images. Thresholds are chosen on one half of the images and reported "
        "on the other; where a row has fewer images than another, it is on that half."
    ]
    for (name, other), ways in compared.items():
        if {"equal", "budget"} <= ways.keys():
            notes.append(f"{name} beside {other}: {equal_accuracy(ways['equal'], ways['budget'])}")
    plot = partial(plot_differences, drawn, footnote=results.scale.label) if drawn else None
    return Table([column("model", "model"), *PAIRED_COLUMNS], rows, notes, plot)

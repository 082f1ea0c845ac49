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
    measure,
    operating_point,
)
from lfvit.results.collect import Run
from lfvit.results.paired import compare_models
from lfvit.results.papers import PUBLISHED, published_rows
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

COST_COLUMNS = [MEASURES[key] for key in ("top1", "gmacs", "exits")]


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
    papers: dict[str, pd.DataFrame] = {}
    for source in artifact.published:
        table = pd.DataFrame(published_rows(source)).rename(columns={"eta": "threshold"})
        table["name"] = table.get("model", PUBLISHED.get(source, source))
        if "m" in table:
            table["name"] += table["m"].map(", m={:g}".format, na_action="ignore").fillna("")
        for name, points in table.groupby("name", sort=False):
            points = points.filter(["threshold", "top1", "gmacs"])
            papers[f"{name} (paper)"] = pd.concat([papers.get(f"{name} (paper)"), points])
    papers = {name: points.drop_duplicates() for name, points in papers.items()}
    if artifact.measures:
        table = make_table(artifact, results)
    else:
        rows: Rows = []
        sources = {row.title: results.source(row) for row in artifact.rows}
        for name, points in {**dict.fromkeys(sources), **curves, **papers}.items():
            about = {"model": name, "source": sources.get(name, "published only")}
            points = pd.DataFrame([{}]) if points is None else points.astype(object)
            known = points.where(points.notna(), None).to_dict("records")
            rows += [about | point for point in known]
        columns = [Column("model", "model"), Column("threshold", "η", None, 2), *COST_COLUMNS]
        table = Table([*columns, SOURCE], rows)
    if curves:
        published = papers if results.scale.comparable else {}
        table.plot = partial(plot_costs, curves, published=published)
    return table


def _curve(row: Row, results: Results, whole: bool) -> pd.DataFrame:
    """Means over seeds of threshold, top1, gmacs and exits along thresholds, or of one point."""
    frames = []
    for run in results.of(row):
        points: Any = [*run.evaluation.curve[::5], *run.evaluation.curve[-1:]] if whole else []
        points = points or [operating_point(run.evaluation, row)]
        rows = [measure(run.evaluation, point) for point in points]
        frames.append(pd.DataFrame(rows, dtype=float)[["threshold", "top1", "gmacs", "exits"]])
    mean = sum(frames[1:], frames[0]) / len(frames)
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
        *COST_COLUMNS,
    ]
    predictions, curve = run.predictions, run.evaluation.curve[:101:5]
    exit_pass, predicted = early_exits(predictions, [point.threshold for point in curve])
    right, first = predicted == predictions["target"].to_numpy(), exit_pass == 0  # (T, N)
    rows: Rows = [
        {
            "eta": point.threshold,
            "right_first": 100 * (right[i] & first[i]).mean(),
            "right_second": 100 * (right[i] & ~first[i]).mean(),
            **measure(run.evaluation, point),
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
        "over seeds, on these images. Thresholds are never chosen on the images they are reported "
        "on: each half of the images is run with the threshold chosen on the other, but where a "
        "row has fewer images than another, it is on one half alone."
    ]
    plot = partial(plot_differences, drawn) if drawn else None
    return Table([Column("model", "model"), *PAIRED_COLUMNS], rows, notes, plot)

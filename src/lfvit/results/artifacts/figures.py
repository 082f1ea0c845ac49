"""The figures of artifacts that follow from evaluations: the numbers, and what draws them."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import pandas as pd

from lfvit.measure.thresholds import early_exits
from lfvit.results.artifacts import plots
from lfvit.results.artifacts.settings import Artifact, Row
from lfvit.results.artifacts.tables import (
    LABELS,
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
from lfvit.results.plots import plot_differences

CHOSEN = "max_loss=0.5"
"""The rule whose threshold stands for a model with early exit."""
SERIES = {"frontier.adaptivenn_deit_s": "AdaptiveNN", "frontier.thinkingvit": "ThinkingViT"}
"""Names of published rows that do not say their model."""


def cost_curves(artifact: Artifact, results: Results) -> Table:
    """Every 0.05 of the threshold of models with early exit, and the one point of the others."""
    curves = {row.model or row.run: _curve(row, results) for row in artifact.rows}
    rows: Rows = []
    for row, points in zip(artifact.rows, curves.values(), strict=True):
        label = {"model": row.model, "source": results.source(row)}
        rows += [{**label, **point} for point in points or [{}]]
    papers = _published_curves(artifact)
    for name, points in papers.items():
        rows += [{"model": name, "source": "published only", **point} for point in points]
    columns = [column("model", "model"), column("eta", "η", None, 2)]
    columns += [*measure_columns("top1", "gmacs", "exits"), SOURCE]
    drawn = {name: points for name, points in curves.items() if points}
    plot = partial(plots.plot_costs, drawn, papers, results.scale) if drawn else None
    return Table(columns, rows, plot=plot)


def _curve(row: Row, results: Results) -> Rows:
    """Means over seeds of eta, top1, gmacs and exits, along the thresholds or of one point."""
    frames = []
    for run in results.of(row):
        evaluation = run.evaluation
        points = [*evaluation.curve[::5], *evaluation.curve[-1:]]
        if row.at or not points:
            points = [operating_point(evaluation, row)]  # type: ignore[list-item]
        keys = ("threshold", "top1", "exit_fraction", "gmacs")
        frames.append(pd.DataFrame([{k: getattr(p, k) for k in keys} for p in points], dtype=float))
    if not frames:
        return []
    mean = sum(frames[1:], frames[0]) / len(frames)
    mean["exits"] = 100 * mean.pop("exit_fraction")
    if len(mean) == 1:  # a threshold chosen for each seed is not a place on the axis
        mean["threshold"] = None
    mean = mean.rename(columns={"threshold": "eta"})
    records: Any = mean.astype(object).where(mean.notna(), None).to_dict("records")
    return list(records)


def _published_curves(artifact: Artifact) -> dict[str, Rows]:
    """Published points by model, named as in the papers, with the window where there is one."""
    curves: dict[str, Rows] = {}
    for source in artifact.published:
        for row in artifact.model_copy(update={"published": [source]}).published_rows():
            name = str(row.get("model") or SERIES.get(source, source))
            name += "" if row.get("m") is None else f", m={row['m']}"
            point = {"eta": row.get("eta"), "top1": row["top1"], "gmacs": row["gmacs"]}
            points = curves.setdefault(f"{name} (paper)", [])
            if point not in points:
                points.append(point)
    return curves


def operating_points(artifact: Artifact, results: Results) -> Table:
    """A table of every pass and of a chosen threshold, drawn as curves."""
    rows = []
    for row in artifact.rows:
        run = results.first(row)
        passes = 1 if run is None else run.num_passes
        ways = ["one pass"] if passes == 1 else [f"pass {i + 1}" for i in range(passes)]
        ways += [CHOSEN] if passes > 1 else []
        at = {"one pass": None, CHOSEN: CHOSEN}
        rows += [
            row.model_copy(update={"way": "early exit" if w == CHOSEN else w, "at": at.get(w, w)})
            for w in ways
        ]
    measures = dict.fromkeys(["threshold", "top1", "gmacs", "exits", *artifact.measures])
    settings = {"rows": rows, "measures": list(measures)}
    table = make_timed_table(artifact.model_copy(update=settings), results)
    table.plot = cost_curves(artifact, results).plot
    table.notes += _localisation(artifact, results)
    return table


def _localisation(artifact: Artifact, results: Results) -> list[str]:
    """How often the second pass looks at the object, where the data knows where it is."""
    shares, chance = [], 0.0
    for row in artifact.rows:
        run = results.first(row)
        if run is not None and (where := run.evaluation.localisation):
            shares.append(f"{row.model} {100 * where.region.whole:.1f} %")
            chance = where.random_windows.whole
    if not shares:
        return []
    return [
        "Images in which the second pass sees the whole object in full resolution: "
        f"{', '.join(shares)}; with a window anywhere {100 * chance:.1f} %."
    ]


def sweep(artifact: Artifact, results: Results) -> Table:
    """A table, drawn over one of its labels."""
    table = make_table(artifact, results)
    measured = [row for row in table.rows if row["source"] == "measured"]

    def titles(keys: Sequence[str]) -> dict[str, str]:
        return {k: MEASURES[k].title + (f" ({u})" if (u := MEASURES[k].unit) else "") for k in keys}

    if measured and artifact.x:
        x, sides = (artifact.x, LABELS[artifact.x]), (titles(artifact.left), titles(artifact.right))
        table.plot = partial(plots.plot_sweep, measured, x, *sides, results.scale)
    return table


def total_cost(artifact: Artifact, results: Results) -> Table:
    """Cost of models with two passes, and of a one-pass ViT that is as accurate."""
    line: Rows = []
    for row in artifact.yardsticks:
        line += [{"model": row.model, "way": "one pass", **point} for point in _curve(row, results)]
    line.sort(key=lambda point: point["gmacs"])
    columns = [
        column("model", "model"),
        column("way", "run"),
        *measure_columns("top1", "gmacs"),
        column("one_pass", "one-pass ViT of equal accuracy", "GMAC", 4),
        column("ratio", "cost, share of that", "%", 0),
        SOURCE,
    ]
    rows: Rows = [{**point, "source": "measured"} for point in line]
    for row in artifact.rows:
        values: dict[str, Any] = {**row.labels, "source": results.source(row)}
        if points := _curve(row, results):
            equal = cost_at(line, points[0]["top1"])
            ratio = None if equal is None else 100 * points[0]["gmacs"] / equal
            values |= {**points[0], "one_pass": equal, "ratio": ratio}
        rows.append(values)
    curves: dict[str, Rows] = {"one-pass ViT": line} if line else {}
    for row in artifact.rows:
        if points := _curve(row.model_copy(update={"at": None}), results):
            curves[row.model or row.run] = points
    plot = partial(plots.plot_costs, curves, {}, results.scale) if curves else None
    return Table(columns, rows, plot=plot)


def cost_at(line: Rows, top1: float) -> float | None:
    """GMACs at which a line through points of rising cost first reaches an accuracy.

    Returns:
        None where the points do not enclose it.
    """
    for low, high in pairwise(line):
        if low["top1"] <= top1 <= high["top1"] and low["top1"] < high["top1"]:
            share = (top1 - low["top1"]) / (high["top1"] - low["top1"])
            return float(low["gmacs"] + share * (high["gmacs"] - low["gmacs"]))
    return None


def passes(artifact: Artifact, results: Results) -> Table:
    """Images that each pass answers correctly at every threshold, of the first seed."""
    (row,) = artifact.rows
    columns = [
        column("eta", "η", None, 2),
        column("right_first", "right in the first pass", "%", 2),
        column("right_second", "right in the second pass", "%", 2),
        *measure_columns("top1", "gmacs", "exits"),
    ]
    if (run := results.first(row)) is None:
        return Table(columns, [])
    curve = run.evaluation.curve[:101:5]
    exit_pass, predicted = early_exits(run.predictions, [point.threshold for point in curve])
    right = predicted == run.predictions["target"].to_numpy()  # (T, N)
    first = exit_pass == 0
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
    return Table(columns, rows, plot=partial(plots.plot_passes, rows, results.scale))


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
    labels = [column(k, t) for k, t in LABELS.items() if any(k in r.labels for r in artifact.rows)]
    rows: Rows = []
    drawn: list[tuple[str, PairedRow]] = []
    asked: dict[tuple[str, str], dict[str, PairedRow]] = {}
    for yardstick, row in product(artifact.yardsticks, artifact.rows):
        if row.run == yardstick.run:
            continue
        name, other = str(row.model), str(yardstick.model)
        ours, theirs = results.of(row), results.of(yardstick)
        values = {**row.labels, "other": other}
        values["source"] = results.source(yardstick if ours and not theirs else row)
        if ours and theirs:
            way = row.at or "both"
            compared = compare_models(ours, theirs, way, yardstick.at or "both")
            values |= {**compared.comparison._asdict(), **compared._asdict()}
            values |= {"p": max(compared.comparison.p_values), "verdict": verdict(compared)}
            drawn.append((f"{name} - {other}", compared))
            asked.setdefault((name, other), {})[way] = compared
        rows.append(values)
    notes = [
        "Differences are taken image by image. 95 %: over images, for these models (bootstrap); ±: "
        "over seeds, on these images. Thresholds are chosen on one half of the images and reported "
        "on the other; where a row has fewer images than another, it is on that half."
    ]
    for (name, other), ways in asked.items():
        if {"equal", "budget"} <= ways.keys():
            notes.append(f"{name} beside {other}: {equal_accuracy(ways['equal'], ways['budget'])}")
    plot = partial(plot_differences, drawn, footnote=results.scale.label) if drawn else None
    return Table([*labels, *PAIRED_COLUMNS], rows, notes, plot)

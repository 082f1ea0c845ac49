"""What the figures of artifacts show: the numbers behind each, and the function that draws them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from lfvit.results.artifacts.comparisons import paired
from lfvit.results.artifacts.content import (
    PUBLISHED,
    SOURCE,
    Content,
    Findings,
    Rows,
    column,
    labelled,
    measure_columns,
    table,
)
from lfvit.results.artifacts.measures import (
    ETAS,
    LABELS,
    MEASURES,
    Evaluation,
    labels_of,
    operating_point,
)
from lfvit.results.artifacts.probe_figures import by_object_size, depth, one_block, passes, regions
from lfvit.results.artifacts.probes import image_predictions
from lfvit.results.artifacts.spec import Artifact
from lfvit.results.figures import (
    plot_costs,
    plot_sweep,
)
from lfvit.tracking.pictures import draw_predictions

NAMES = {"frontier.adaptivenn_deit_s": "AdaptiveNN", "frontier.thinkingvit": "ThinkingViT"}
"""Of published rows that do not say their model."""


def figure(artifact: Artifact, found: Findings) -> Content:
    """The content of a figure, by the way it is drawn."""
    return BUILDERS[artifact.draw or ""](artifact, found)


def cost_curves(artifact: Artifact, found: Findings) -> Content:
    """Every 0.05 of the threshold of two-pass models, and the one point of the others."""
    curves: dict[str, Rows] = {}
    rows: Rows = []
    for row in artifact.rows:
        points = _curve(found.of(row), row)
        if points:
            curves[row["model"]] = points
        given = points or [{"eta": None, "top1": None, "gmacs": None}]
        rows += [{"model": row["model"], "source": found.source(row), **point} for point in given]
    papers = _published_curves(artifact)
    for name, points in papers.items():
        rows += [{"model": name, "source": PUBLISHED, **point} for point in points]
    columns = [column("model", "model"), column("eta", "η", None, 2)]
    columns += [*measure_columns("top1", "gmacs", "exits"), SOURCE]
    rows = [{entry["key"]: row.get(entry["key"]) for entry in columns} for row in rows]
    comparable = found.scale.comparable
    plot = partial(labelled, plot_costs, found, curves, papers, comparable) if curves else None
    return Content(columns, rows, plot=plot)


def _curve(evaluations: Sequence[Evaluation], row: Mapping[str, Any]) -> Rows:
    """Means over seeds."""
    if not evaluations:
        return []
    keys = {"top1": "top1", "gmacs": "gmacs", "exits": "exit_fraction"}
    if not evaluations[0]["curve"] or "at" in row:
        each = [[{"threshold": None, **operating_point(e, row)}] for e in evaluations]
    else:
        each = [_some_points(evaluation) for evaluation in evaluations]
    points = []
    for same in zip(*each, strict=True):
        point = {name: _mean([p.get(key) for p in same]) for name, key in keys.items()}
        point["exits"] = None if point["exits"] is None else 100 * point["exits"]
        points.append({"eta": same[0]["threshold"], **point})
    return points


def _some_points(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every 0.05, and both passes for every image at the end."""
    curve = evaluation["curve"]
    return [p for p in curve if p["threshold"] in ETAS or p is curve[-1]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _published_curves(artifact: Artifact) -> dict[str, Rows]:
    """Published points by model, named as in the papers, with the window where there is one."""
    found: dict[str, Rows] = {}
    for source in artifact.published:
        alone = replace(artifact, published=[source])
        for row in alone.published_rows():
            name = str(row.get("model") or NAMES.get(source, source))
            name += "" if row.get("m") is None else f", m={row['m']}"
            point = {"eta": row.get("eta"), "top1": row["top1"], "gmacs": row["gmacs"]}
            if point not in found.setdefault(f"{name} (paper)", []):
                found[f"{name} (paper)"].append(point)
    return found


def operating_points(artifact: Artifact, found: Findings) -> Content:
    """A table of each pass, both, and a calibrated threshold; drawn as curves."""
    rows: Rows = []
    for row in artifact.rows:
        ways: dict[str, str | None] = {"one pass": None}
        evaluation = found.first(row)
        if evaluation is not None and evaluation["second"] is not None:
            ways = {
                "first pass alone": "first",
                "both passes": "both",
                "early exit, calibrated": "calibrated",
            }
        rows += [{**row, "way": way, **({"at": at} if at else {})} for way, at in ways.items()]
    measures = ["threshold", "top1", "gmacs", "exits", *artifact.measures]
    content = table(replace(artifact, rows=rows, measures=list(dict.fromkeys(measures))), found)
    content.plot = cost_curves(artifact, found).plot
    content.notes += _localisation(artifact, found)
    two_pass = [row for row in artifact.rows if (e := found.first(row)) and e["second"]]
    if artifact.examples and two_pass and content.plot is not None:
        evaluation = found.of(two_pass[0])[0]
        content.plot = partial(_with_examples, content.plot, evaluation, artifact.examples)
        content.notes.append(
            f"examples.png beside this file: predictions of {two_pass[0]['model']}, image by image."
        )
    return content


def _localisation(artifact: Artifact, found: Findings) -> list[str]:
    """How often the second pass looks at the object, where the data knows where it is."""
    shares, chance = [], None
    for row in artifact.rows:
        parts = (found.first(row) or {}).get("localisation")
        if parts:
            shares.append(f"{row['model']} {100 * parts['region']['whole']:.1f} %")
            chance = chance or parts["random_windows"]["whole"]
    if chance is None:
        return []
    return [
        "Images in which the second pass sees the whole object in full resolution: "
        f"{', '.join(shares)}; with a window anywhere {100 * chance:.1f} %."
    ]


def _with_examples(
    plot: Callable[[Sequence[Path]], None],
    evaluation: Evaluation,
    count: int,
    paths: Sequence[Path],
) -> None:
    """Beside the plot, images with their predictions: half that exit, half that do not."""
    plot(paths)
    seen = image_predictions(evaluation, 100)
    early, late = [s for s in seen if s.exited], [s for s in seen if not s.exited]
    few = early[: max(count // 2, count - len(late))]
    draw_predictions(few + late[: count - len(few)], paths[0].with_name("examples.png"))


def sweep_setting(artifact: Artifact, found: Findings) -> Content:
    """A table, drawn over one of its labels."""
    content = table(artifact, found)
    known = [row for row in content.rows if row["source"] == "measured"]
    x = str(artifact.x)

    def titles(keys: Sequence[str]) -> dict[str, str]:
        return {k: MEASURES[k].title + (f" ({u})" if (u := MEASURES[k].unit) else "") for k in keys}

    if known:
        sides = titles(artifact.left), titles(artifact.right)
        content.plot = partial(labelled, plot_sweep, found, known, (x, LABELS[x]), *sides)
    return content


def total_cost(artifact: Artifact, found: Findings) -> Content:
    """Cost of two-pass models, and of a one-pass ViT that is as accurate."""
    line: Rows = []
    for row in artifact.yardsticks:
        line += [{"name": row["model"], **point} for point in _curve(found.of(row), {"at": "both"})]
    line.sort(key=lambda point: point["gmacs"])
    columns = [
        column("model", "model"),
        column("way", "run"),
        *measure_columns("top1", "gmacs"),
        column("one_pass", "one-pass ViT of equal accuracy", "GMAC", 4),
        column("ratio", "cost, share of that", "%", 0),
        SOURCE,
    ]
    rows: Rows = [{"model": p["name"], "way": "one pass", "source": "measured", **p} for p in line]
    for row in artifact.rows:
        points = _curve(found.of(row), row)
        point = points[0] if points else {}
        equal = cost_at(line, point["top1"]) if point else None
        ratio = None if equal is None else 100 * point["gmacs"] / equal
        label = {**labels_of(row), "source": found.source(row)}
        rows.append({**label, **point, "one_pass": equal, "ratio": ratio})
    rows = [{entry["key"]: row.get(entry["key"]) for entry in columns} for row in rows]
    curves: dict[str, Rows] = {"one-pass ViT": line} if line else {}
    for row in artifact.rows:
        if row["at"] == "both" and found.of(row):
            curves[row["model"]] = _curve(found.of(row), {})
    plot = partial(labelled, plot_costs, found, curves, {}, True) if curves else None
    return Content(columns, rows, plot=plot)


def cost_at(line: Sequence[Mapping[str, Any]], top1: float) -> float | None:
    """GMACs at which a line through points of rising cost first reaches an accuracy.

    Returns:
        None where the points do not enclose it.
    """
    for low, high in pairwise(line):
        if low["top1"] <= top1 <= high["top1"] and low["top1"] < high["top1"]:
            share = (top1 - low["top1"]) / (high["top1"] - low["top1"])
            return float(low["gmacs"] + share * (high["gmacs"] - low["gmacs"]))
    return None


BUILDERS: dict[str, Callable[[Artifact, Findings], Content]] = {
    "operating_points": operating_points,
    "cost_curves": cost_curves,
    "sweep": sweep_setting,
    "passes": passes,
    "regions": regions,
    "depth": depth,
    "one_block": one_block,
    "by_object_size": by_object_size,
    "total_cost": total_cost,
    "paired": paired,
}
"""Names of ``draw`` in conf/artifact."""

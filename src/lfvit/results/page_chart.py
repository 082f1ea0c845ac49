"""The report page's charts, in Vega-Lite: accuracy against cost, and learning curves."""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from lfvit.results.collect import Run, training_folder
from lfvit.results.table import FORMATS, TITLES

COLOURS = 8  # --c0 to --c7 in page.css
AXES = {
    "gmacs": "GMACs per image",
    "share": "cost, % of the one-pass model",
    "images_per_second": "images per second",
}
"""Columns that the page can put on the x axis, and their titles."""
CURVES = {"train/loss": "loss (training)", "val/loss": "loss (validation)", "val/top1": "top-1 (%)"}
"""Columns of metrics.csv, and their titles."""


def accuracy_chart(
    models: list[str],
    featured: int,
    curves: pd.DataFrame,
    points: pd.DataFrame,
    published: pd.DataFrame,
    x: str,
) -> dict[str, Any]:
    """Top-1 against cost: early-exit curves, operating points and published figures.

    The page's script sets its parameters: ``hidden``, the names of models that are left out;
    ``eta``, the threshold marked on every curve; ``show_published``.

    Args:
        models: names in the order of their colours.
        featured: how many of them are shown at first.
        curves, points, published: see `lfvit.results.table` and `lfvit.results.papers`.
        x: column on the x axis, one of `AXES`.

    Returns:
        The Vega-Lite specification.
    """
    hidden = alt.param(name="hidden", value=models[featured:])
    eta = alt.param(name="eta", value=0.7)
    published_too = alt.param(name="show_published", value=True)
    colours = [f"var(--c{i % COLOURS})" for i in range(len(models))]
    colour = alt.Color("model:N", legend=None, scale=alt.Scale(domain=models, range=colours))
    axes = {
        "x": alt.X(
            x,
            type="quantitative",
            title=AXES[x],
            scale=alt.Scale(zero=False),
            axis=alt.Axis(tickCount=10, labelOverlap="greedy"),
        ),
        "y": alt.Y("top1:Q", title="top-1 (%)", scale=alt.Scale(zero=False)),
    }
    shown = "indexof(hidden, datum.model) < 0"
    lines = alt.Chart(alt.NamedData("curves")).transform_filter(shown)
    marks = alt.Chart(alt.NamedData("points")).transform_filter(shown)
    papers = alt.Chart(alt.NamedData("published")).transform_filter("show_published")
    pale: Any = {"opacity": 0.55, "color": "var(--pale)"}
    tooltip = _tooltip("model", "threshold", "top1", "exit_fraction", "gmacs", "images_per_second")
    point_tooltip = [*tooltip[:1], *_tooltip("rule"), *tooltip[1:], *_tooltip("seeds", "images")]
    chart = alt.layer(
        papers.mark_line(strokeWidth=1, **pale).encode(**axes, detail="model:N"),
        papers.mark_point(size=40, **pale).encode(
            **axes, tooltip=_tooltip("model", "source", "setting", "top1", "gmacs")
        ),
        lines.mark_line(strokeWidth=2.5).encode(**axes, color=colour, order="threshold:Q"),
        lines.mark_point(size=60, opacity=0).encode(**axes, tooltip=tooltip),
        marks.mark_rule(strokeWidth=1.5)
        .transform_calculate(low="datum.top1 - datum.top1_std", high="datum.top1 + datum.top1_std")
        .transform_filter("isValid(datum.top1_std)")
        .encode(x=axes["x"], y=alt.Y("low:Q", title="top-1 (%)"), y2="high:Q", color=colour),
        marks.mark_point(filled=True, size=90, opacity=1).encode(
            **axes,
            color=colour,
            shape=alt.Shape(
                "kind:N",
                legend=None,
                scale=alt.Scale(
                    domain=["pass", "rule", "guarantee"], range=["circle", "diamond", "triangle"]
                ),
            ),
            tooltip=point_tooltip,
        ),
        lines.mark_point(size=220, strokeWidth=3, opacity=1)
        .transform_filter("abs(datum.threshold - eta) < 0.005")
        .encode(**axes, color=colour, tooltip=tooltip),
    )
    chart = chart.add_params(hidden, eta, published_too).properties(
        width="container", height=420, description="Top-1 accuracy against cost; tables below"
    )
    return _specification(chart, curves=curves, points=points, published=published)


def _tooltip(*columns: str) -> list[alt.Tooltip]:
    """Columns with the titles and formats of the tables."""
    formats = {name: text.replace("g", "~g") for name, text in FORMATS.items()}  # as in Python
    tooltips = []
    for name in columns:
        kind: Any = {"type": "nominal"}
        if name in formats:
            kind = {"type": "quantitative", "format": formats[name]}
        tooltips.append(alt.Tooltip(name, title=TITLES.get(name, name), **kind))
    return tooltips


def read_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Loss and accuracy by epoch of every training, from metrics.csv.

    Columns: epoch (from 1), curve, value, model, seed; no rows where nothing was logged.
    """
    folders = {training_folder(run.folder, run.evaluation): run for run in runs}
    parts = [pd.DataFrame(columns=["epoch", "curve", "value", "model", "seed"])]
    for folder, run in folders.items():
        try:
            rows = pd.read_csv(folder / "metrics.csv") if folder else pd.DataFrame()
        except (OSError, ValueError):  # another logger, or cut off
            continue
        known = [name for name in CURVES if name in rows]
        if "epoch" in rows and known:
            means = rows.groupby("epoch")[known].mean().rename(columns=CURVES).reset_index()
            long = means.melt("epoch", var_name="curve").dropna()
            parts.append(long.assign(epoch=long["epoch"] + 1, model=run.model, seed=run.seed))
    return pd.concat(parts) if len(parts) > 1 else parts[0]


def learning_chart(curves: pd.DataFrame) -> dict[str, Any]:
    """A Vega-Lite specification with a panel per curve and a line per training."""
    chart = (
        alt.Chart(alt.NamedData("learning"))
        .mark_line()
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color("model:N", title=None, legend=alt.Legend(orient="bottom")),
            detail="seed:N",
            column=alt.Column("curve:N", title=None, sort=list(CURVES.values())),
        )
        .properties(width=240, height=200)
        .resolve_scale(y="independent")
    )
    return _specification(chart, learning=curves)


def _specification(chart: Any, **tables: pd.DataFrame) -> dict[str, Any]:
    spec = chart.configure(background="transparent", font="inherit").to_dict()
    rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    return {**spec, "datasets": rows}


def render_charts(*specs: dict[str, Any]) -> tuple[str, list[str]]:
    """Vega-Lite and Vega-Embed as one module that sets ``window.vegaEmbed``, and charts as SVG.

    The latter are shown until that runs, and where it does not.
    """
    wide = [{**s, "width": 880} if s.get("width") == "container" else s for s in specs]
    bundle: Any = vl_convert.javascript_bundle  # its stub asks for an argument
    return bundle(), [vl_convert.vegalite_to_svg(spec) for spec in wide]

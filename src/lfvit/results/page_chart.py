"""The report page's chart of accuracy against cost, in Vega-Lite."""

import json
import subprocess
import sys
from typing import Any

import altair as alt
import pandas as pd

from lfvit.errors import DataError
from lfvit.results.table import FORMATS, TITLES

COLOURS = 8  # --c0 to --c7 in page.css
AXES = {
    "gmacs": "GMACs per image",
    "share": "cost, % of the one-pass model",
    "images_per_second": "images per second",
}
"""Columns that the page can put on the x axis, and their titles."""


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
    spec: dict[str, Any] = chart.configure(background="transparent", font="inherit").to_dict()
    tables = {"curves": curves, "points": points, "published": published}
    rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    return {**spec, "datasets": rows}


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


def render_chart(spec: dict[str, Any], *others: dict[str, Any]) -> tuple[str, list[str]]:
    """What draws the chart without a network.

    In a process of its own: the JavaScript engine in vl-convert ends the whole process where the
    address space is limited.

    Args:
        spec: see `accuracy_chart`.
        *others: that stay as they are drawn here.

    Returns:
        Vega-Lite and Vega-Embed as one module that sets ``window.vegaEmbed``, and the charts as
        SVG, the first of which is shown until that runs and where it does not.

    Raises:
        DataError: it cannot be drawn.
    """
    code = (
        "import json, sys, vl_convert; specs = json.load(sys.stdin); "
        "drawn = [vl_convert.vegalite_to_svg(spec) for spec in specs]; "
        "print(json.dumps([vl_convert.javascript_bundle(), drawn]))"
    )
    content = json.dumps([{**spec, "width": 880}, *others])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(line for line in done.stderr.splitlines() if line.strip("# "))[:300]
        raise DataError(f"vl-convert cannot draw the page's chart: {reason}")
    script, drawn = json.loads(done.stdout)
    return script, drawn

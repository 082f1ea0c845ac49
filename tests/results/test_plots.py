"""Figures: legends stand beside what they explain."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from lfvit.results.plots import Panel, plot_costs, plot_panels

ROWS = [
    {"threshold": e, "top1": 70 + 10 * e, "top1_std": 1, "gmacs": 1 + e} for e in (0.0, 0.5, 1.0)
]
CURVES = {f"A model with a long name, m={m}": pd.DataFrame(ROWS) for m in range(9)}
PAPER = {f"{name} (paper)": pd.DataFrame(ROWS[:1]) for name in CURVES}
LINES = {"top1": ("a legend of many words", "#000000"), "gmacs": ("another one", "#777777")}
PANELS = [[Panel(ROWS, ("threshold", "threshold"), "top-1 (%)", LINES)] * 3] * 2


@pytest.mark.parametrize(
    ("draw", "content", "options"),
    [
        (plot_costs, CURVES, {"published": PAPER}),
        (plot_panels, PANELS, {}),
    ],
)
def test_no_legend_covers_a_plot(draw, content, options, tmp_path, monkeypatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    draw(content, [tmp_path / "figure.png"], "a footnote", **options)
    figure = drawn[0]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    boxes = [legend.get_window_extent() for legend in legends if legend is not None]
    assert boxes
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        for plot in (axes.get_window_extent() for axes in figure.axes):
            beside = box.x0 >= plot.x1 or box.x1 <= plot.x0
            assert beside or box.y0 >= plot.y1 or box.y1 <= plot.y0, f"{box} covers {plot}"

"""Figures of artifacts: legends stand beside what they explain."""

import pytest
from matplotlib.figure import Figure

from lfvit.results.artifacts.plots import Panel, plot_costs, plot_panels
from lfvit.results.artifacts.settings import Scale
from lfvit.runs.configs import compose_config
from lfvit.utils.validation import plain

CURVE = [{"eta": e, "top1": 70 + 10 * e, "top1_std": 1, "gmacs": 1 + e} for e in (0.0, 0.5, 1.0)]
CURVES = {f"A model with a long name, m={m}": CURVE for m in range(9)}
PAPER = {f"{name} (paper)": CURVE[:1] for name in CURVES}
LINES = {"top1": ("a legend of many words", "#000000"), "gmacs": ("another one", "#777777")}
PANELS = [Panel(CURVE, ("eta", "threshold"), "top-1 (%)", LINES)] * 3


@pytest.mark.parametrize("comparable", [True, False])
@pytest.mark.parametrize(
    ("draw", "content"), [(plot_costs, (CURVES, PAPER)), (plot_panels, (PANELS,))]
)
def test_no_legend_covers_a_plot(draw, content, comparable, tmp_path, monkeypatch):
    scale = {**plain(compose_config("reproduce").scale), "comparable": comparable}
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    draw(*content, Scale(**scale), [tmp_path / "figure.png"])
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

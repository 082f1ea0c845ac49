"""Figures of artifacts: legends stand beside what they explain."""

import pytest
from matplotlib.figure import Figure

from lfvit.results.artifacts import plots
from lfvit.results.artifacts.settings import Scale
from lfvit.runs.overrides import compose_config
from lfvit.utils.validation import plain

CURVE = [{"eta": e, "top1": 70 + 10 * e, "gmacs": 1 + e} for e in (0.0, 0.5, 1.0)]
POINT = [{"eta": None, "top1": 75.0, "gmacs": 2.0}]
NAMES = [f"A model with a long name, m={m}" for m in range(9)]
BLOCKS = [
    {"block": b, "overlap": 0.5, "frequency": 50.0, "evit": 60.0, "whole": 70.0} for b in range(4)
]
DEPTH = [
    {"block": b, "log_amplitude": -b, "log_amplitude_std": 0.1, "strength": b, "high": b, "low": b}
    for b in range(4)
]
PASSES = [{**p, "right_first": 20.0, "right_second": 60.0, "exits": 10.0} for p in CURVE]
DRAWN = {
    "costs": (plots.plot_costs, dict.fromkeys(NAMES, CURVE), {"DVT (paper)": POINT}),
    "sweep": (plots.plot_sweep, CURVE, ("eta", "η"), {"top1": "top-1"}, {"gmacs": "GMACs"}),
    "passes": (plots.plot_passes, PASSES),
    "depth": (plots.plot_depth, DEPTH, ["High frequencies"], DEPTH),
    "one_block": (plots.plot_one_block, BLOCKS),
}


@pytest.mark.parametrize("comparable", [True, False])
@pytest.mark.parametrize("name", DRAWN)
def test_no_legend_covers_a_plot(name, comparable, tmp_path, monkeypatch):
    scale = {**plain(compose_config("reproduce").scale), "comparable": comparable}
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    draw, *content = DRAWN[name]
    draw(*content, Scale(**scale), [tmp_path / "figure.png"])
    figure = drawn[0]
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    assert legends
    for legend in legends:
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        for axes in figure.axes:
            plot = axes.get_window_extent()
            apart = box.x0 >= plot.x1 or box.x1 <= plot.x0 or box.y0 >= plot.y1 or box.y1 <= plot.y0
            assert apart, f"{name}: {box} covers {plot}"

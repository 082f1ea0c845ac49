"""Runs that differ only in their seed, as one model; accuracy against cost with its spread."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lfvit.results.old.evaluated import Run
from lfvit.results.old.plots import ENDS, GREY, PALETTE, STYLE, finish_cost_axes, literal
from lfvit.results.old.tables import is_plain


def by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Name of a model -> its runs, one per seed, in the order of the seeds."""
    groups: dict[tuple[str, str], dict[Any, Run]] = {}
    for run in runs:
        groups.setdefault((run.model, run.group), {}).setdefault(run.seed, run)
    return {
        model: sorted(seeds.values(), key=lambda run: (run.seed is None, run.seed or 0))
        for (model, _), seeds in groups.items()
    }


def yardstick(groups: Mapping[str, Sequence[Run]]) -> str | None:
    """The model that others are compared with: the last one-pass model without a reducer."""
    plain = [name for name, runs in groups.items() if is_plain(runs[0].evaluation)]
    return plain[-1] if plain else None


def plot_with_bands(groups: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Means over seeds of accuracy and cost at every threshold, with their standard deviation."""
    two_pass = [name for name, runs in groups.items() if runs[0].two_pass]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for (name, runs), colour in zip(groups.items(), cycle(PALETTE), strict=False):
            if name in two_pass:
                _draw_band(axes, [run.evaluation for run in runs], name, colour)
                continue
            top1, gmacs = ([run.evaluation["first"][k] for run in runs] for k in ("top1", "gmacs"))
            error = stdev(top1) if len(top1) > 1 else None
            point: Any = {"fmt": "D", "color": colour, "capsize": 3, "zorder": 4}
            label = literal(name)
            axes.errorbar(fmean(gmacs), fmean(top1), yerr=error, label=label, **point)
        if two_pass:
            for marker, text in ENDS.values():
                axes.plot([], [], marker, color=GREY, label=text)
        finish_cost_axes(axes)
        figure.savefig(path, dpi=120)


def _draw_band(axes: Any, evaluations: Sequence[Any], name: str, colour: str) -> None:
    """A band is as wide as the standard deviation of top-1 at the same threshold.

    Of thresholds that all evaluations have.
    """
    curves = [{point["threshold"]: point for point in found["curve"]} for found in evaluations]
    common = [eta for eta in curves[0] if all(eta in curve for curve in curves)]
    points = [[curve[eta] for curve in curves] for eta in common]
    cost = [fmean(p["gmacs"] for p in same) for same in points]
    top1 = [fmean(p["top1"] for p in same) for same in points]
    axes.plot(cost, top1, color=colour, label=literal(name))
    if len(evaluations) > 1:
        spread = [stdev(p["top1"] for p in same) for same in points]
        low = [mean - s for mean, s in zip(top1, spread, strict=True)]
        high = [mean + s for mean, s in zip(top1, spread, strict=True)]
        axes.fill_between(cost, low, high, color=colour, alpha=0.2, lw=0)
    for end, (marker, _) in ENDS.items():
        each = [found[end] for found in evaluations]
        place = fmean(e["gmacs"] for e in each), fmean(e["top1"] for e in each)
        axes.plot(*place, marker, color=colour, zorder=3)

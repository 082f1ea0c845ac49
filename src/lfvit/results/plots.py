"""Plots of results with matplotlib: accuracy against cost, paired differences, diagnosis."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lfvit.measure.schemas import Evaluation

if TYPE_CHECKING:
    from lfvit.results.paired import PairedRow

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"  # safe for color blindness
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#B8A400", "#000000", GREY)
MARKERS = "os^Dv<>"  # of passes
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model may be called "$5"
}
COST = "GMACs per image (multiply-accumulates)"
HF, LF = ("HF tokens", ORANGE), ("LF tokens", BLUE)
PANELS: dict[str, dict[str, tuple[str, str]]] = {
    "High frequencies": {"log_amplitude": ("log amplitude relative to DC", GREEN)},
    "Similarity of tokens": {
        "last_similarity": ("to the last block", GREEN),
        "dc_similarity": ("to the DC signal", GREY),
    },
    "Two sets: similarity to DC": {"hf_dc_similarity": HF, "lf_dc_similarity": LF},
    "Two sets: amplitude without DC": {"hf_amplitude": HF, "lf_amplitude": LF},
}
"""Panels of `plot_diagnosis`: title, and for each measure in it legend and color."""


@contextmanager
def new_figure(
    paths: Sequence[Path], width: float, height: float, footnote: str = ""
) -> Iterator[Figure]:
    """A figure of so many inches that is saved to every path at the end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if footnote:
            figure.supxlabel(fill(footnote, int(16 * width)), fontsize=7, color=GREY)
        for path in paths:
            figure.savefig(path, dpi=150)


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Accuracy against cost of early exit, with the operating points that rules chose."""
    points = pd.DataFrame([dict(point) for point in evaluation.operating_points])
    points = points[(points["chosen_on"] > 0) & points["top1"].notna()]
    certified = points["rule"].str.contains("<=")
    with new_figure([path], 6.5, 4.8) as figure:
        axes = figure.subplots()
        draw_model(axes, "early exit", [evaluation], BLUE)
        axes.plot("gmacs", "top1", "D", color=ORANGE, data=points[~certified], label="rules")
        axes.plot("gmacs", "top1", "^", color=GREEN, data=points[certified], label="bounded risk")
        _finish(axes, len(evaluation.passes))


def plot_accuracy_cost(models: Mapping[str, Sequence[Evaluation]], path: Path) -> None:
    """Top-1 against GMACs of several models: name -> one evaluation per seed."""
    with new_figure([path], 7.5, 4.8) as figure:
        axes = figure.subplots()
        for (name, seeds), color in zip(models.items(), cycle(PALETTE), strict=False):
            draw_model(axes, name, seeds, color)
        _finish(axes, max(len(seeds[0].passes) for seeds in models.values()))


def draw_model(axes: Axes, name: str, seeds: Sequence[Evaluation], color: str) -> None:
    """Mean over seeds of the early-exit curve and of every pass; bands and bars: one sample std."""
    if seeds[0].curve:
        rows = pd.DataFrame([dict(point) for seed in seeds for point in seed.curve])
        groups = rows.groupby("threshold")[["top1", "gmacs"]]
        mean = groups.mean()[groups.size() == len(seeds)]
        std = groups.std()["top1"].reindex(mean.index).fillna(0)
        axes.plot(mean["gmacs"], mean["top1"], color=color, label=name)
        low, high = mean["top1"] - std, mean["top1"] + std
        axes.fill_between(mean["gmacs"], low, high, color=color, alpha=0.2, lw=0)
    for number, marker in zip(range(len(seeds[0].passes)), MARKERS, strict=False):
        measured = pd.DataFrame([dict(seed.passes[number]) for seed in seeds])
        place, error = measured[["gmacs", "top1"]].mean(), measured["top1"].std()
        label = None if seeds[0].curve or number else name
        style: Any = {"color": color, "capsize": 3, "zorder": 3, "label": label}
        yerr = None if pd.isna(error) or seeds[0].curve else error
        axes.errorbar(place["gmacs"], place["top1"], yerr=yerr, fmt=marker, **style)


def _finish(axes: Axes, passes: int) -> None:
    """Titles, and a legend below the axes that says which marker is which pass."""
    for number, marker in zip(range(passes if passes > 1 else 0), MARKERS, strict=False):
        axes.errorbar([], [], fmt=marker, color=GREY, label=f"pass {number + 1}")
    axes.set(xlabel=COST, ylabel="top-1 (%)")
    axes.margins(0.06, 0.1)
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)


def plot_differences(
    rows: Sequence[tuple[str, "PairedRow"]], paths: Sequence[Path], footnote: str = ""
) -> None:
    """A line per named comparison: the difference in top-1 with its interval over images."""
    with new_figure(paths, 8, 1.2 + 0.36 * len(rows), footnote) as figure:
        axes = figure.subplots()
        for y, (_, row) in enumerate(rows):
            found = row.comparison
            axes.plot([found.low, found.high], [y, y], color=BLUE, lw=2.5, solid_capstyle="butt")
            if row.seeds > 1:
                axes.plot(found.per_seed, [y] * row.seeds, "|", color=ORANGE, ms=9, mew=1.5)
            axes.plot(found.difference, y, "o", color=BLUE, ms=6)
        axes.axvline(0, color=GREY, lw=1, ls=":")
        names = [f"{name}, {row.way}\n{row.cost:.0f} % of the cost" for name, row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        orange = "; orange: single seeds" if any(row.seeds > 1 for _, row in rows) else ""
        axes.set_xlabel(f"difference in top-1, points\n(line: 95 % interval over images{orange})")


def plot_diagnosis(diagnosis: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """The content of diagnose.json: four panels over block depth, one row of them per pass."""
    rows = pd.DataFrame(diagnosis["rows"])
    passes = list(rows["pass"].unique())
    footnote = (
        f"{diagnosis['method']['name']}, {diagnosis['images']} images. Bands: one standard "
        "deviation over images. Block 0: the input of the first block. LF: the "
        f"{100 * diagnosis['removed']:g} % of tokens that receive least attention, HF: the others."
    )
    with new_figure(paths, 14, 0.9 + 2.7 * len(passes), footnote) as figure:
        grid = figure.subplots(len(passes), len(PANELS), sharex=True, squeeze=False)
        for name, line in zip(passes, grid, strict=True):
            for axes, curves in zip(line, PANELS.values(), strict=True):
                for measure, (_, color) in curves.items():
                    draw_measure(axes, rows[rows["pass"] == name], measure, color)
            line[0].set_ylabel(f"pass {name}", fontweight="bold")
            for axes, above in zip(line[1:], grid[0, 1:], strict=True):
                if axes is not above:  # log amplitudes of different grids are not comparable
                    axes.sharey(above)
        for axes, (title, curves) in zip(grid[0], PANELS.items(), strict=True):
            axes.set_title(title, fontsize=11, loc="left", fontweight="bold", pad=24)
            names = [legend for legend, _ in curves.values()]
            place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 2}
            axes.legend(axes.lines, names, fontsize=9, handlelength=1.5, **place)
        for axes in grid[-1]:
            axes.set_xlabel("block")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_measure(axes: Axes, rows: pd.DataFrame, measure: str, color: str) -> None:
    """One measure of a pass over its blocks, with its spread, where the blocks have a value."""
    rows = rows.dropna(subset=[measure])
    mean, std = rows[measure].astype(float), rows[f"{measure}_std"].astype(float)
    axes.plot(rows["block"], mean, color=color, marker="o", ms=3.5)
    axes.fill_between(rows["block"], mean - std, mean + std, color=color, alpha=0.15, lw=0)

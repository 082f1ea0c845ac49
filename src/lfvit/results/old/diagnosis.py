"""The figure of diagnose.json."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lfvit.results.old.plots import BLUE, GREEN, GREY, ORANGE, STYLE

SETS = (("HF tokens", ORANGE), ("LF tokens", BLUE))
PANELS: dict[str, dict[str, tuple[str, str]]] = {
    "High frequencies": {"log_amplitude": ("log amplitude relative to DC", GREEN)},
    "Similarity of tokens": {
        "last_similarity": ("to the last block", GREEN),
        "dc_similarity": ("to the DC signal", GREY),
    },
    "Two sets: similarity to DC": dict(
        zip(("hf_dc_similarity", "lf_dc_similarity"), SETS, strict=True)
    ),
    "Two sets: amplitude without DC": dict(
        zip(("hf_amplitude", "lf_amplitude"), SETS, strict=True)
    ),
}
"""Title of a column, and for each measure in it legend and colour."""


def plot_diagnosis(found: Mapping[str, Any], paths: Iterable[Path]) -> None:
    """diagnose.json as a picture: four panels over block depth, one row of them per pass."""
    passes = list(dict.fromkeys(row["pass"] for row in found["rows"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14, 0.9 + 2.7 * len(passes)), layout="constrained")
        grid = figure.subplots(len(passes), len(PANELS), sharex=True, squeeze=False)
        for line in grid[1:]:  # log amplitudes of different grids are not comparable, the rest is
            for axes, above in zip(line[1:], grid[0, 1:], strict=True):
                axes.sharey(above)
        for name, line in zip(passes, grid, strict=True):
            rows = [row for row in found["rows"] if row["pass"] == name]
            for axes, curves in zip(line, PANELS.values(), strict=True):
                for measure, (_, colour) in curves.items():
                    draw_measure(axes, rows, measure, colour)
            line[0].set_ylabel(f"pass {name}", fontweight="bold")
        for axes, (title, curves) in zip(grid[0], PANELS.items(), strict=True):
            axes.set_title(title, fontsize=11, loc="left", fontweight="bold", pad=24)
            names = [legend for legend, _ in curves.values()]
            place: Any = {
                "loc": "lower left",
                "bbox_to_anchor": (-0.02, 0.98),
                "ncols": 2,
                "handlelength": 1.5,
            }
            axes.legend(axes.lines, names, frameon=False, fontsize=9, **place)
        for axes in grid[-1]:
            axes.set_xlabel("block")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.supxlabel(
            f"{found['method']['name']}, {found['images']} images. Bands: one standard deviation "
            "over images. Block 0: what enters the first block. LF: the "
            f"{100 * found['removed']:g} % of tokens that receive least attention, HF: the others.",
            fontsize=8,
            color=GREY,
        )
        for path in paths:
            figure.savefig(path, dpi=150)


def draw_measure(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str, colour: str) -> None:
    """One curve of a pass over its blocks, with its spread; blocks without a value are left out."""
    known = [row for row in rows if row[measure] is not None]
    blocks = [row["block"] for row in known]
    means = [row[measure] for row in known]
    spreads = [row[f"{measure}_std"] for row in known]
    axes.plot(blocks, means, color=colour, marker="o", ms=3.5)
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(blocks, low, high, color=colour, alpha=0.15, lw=0)

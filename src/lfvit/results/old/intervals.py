"""Differences between models with their intervals, drawn one below the other."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
from matplotlib.figure import Figure

from lfvit.results.old.comparisons import Row
from lfvit.results.old.plots import BLUE, GREY, ORANGE, STYLE


def plot_differences(
    rows: Sequence[tuple[str, Row]], paths: Iterable[Path], label: str = ""
) -> None:
    """One line per comparison: the mean over seeds with its interval over images, and every seed.

    Args:
        rows: what stands beside each line, and the comparison.
        paths: files to write.
        label: a line under the figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, (_, row) in enumerate(rows):
            found = row.comparison
            axes.plot([found.low, found.high], [y, y], color=BLUE, lw=2.5, solid_capstyle="butt")
            if row.seeds > 1:
                axes.plot(found.per_seed, [y] * row.seeds, "|", color=ORANGE, ms=9, mew=1.5)
            axes.plot(found.difference, y, "o", color=BLUE, ms=6)
        axes.axvline(0, color=GREY, lw=1, ls=":")
        texts = [f"{name}\n{row.cost:.0f} % of the cost" for name, row in rows]
        axes.set_yticks(range(len(rows)), texts, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        seeds = "; orange: each seed" if any(row.seeds > 1 for _, row in rows) else ""
        axes.set_xlabel(f"difference in top-1, points\n(line: 95 % over images{seeds})")
        if label:
            figure.supxlabel(fill(label, 130), fontsize=7, color=GREY)
        for path in paths:
            figure.savefig(path, dpi=120)

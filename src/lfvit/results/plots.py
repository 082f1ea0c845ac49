"""Plots with matplotlib: accuracy against cost, paired differences, panels of lines.

Every function takes the files to write and a footnote. Legends stand beside what they explain.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lfvit.measure.schemas import Evaluation

Paths = Sequence[Path]
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"  # safe for color blindness
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#B8A400", "#000000", GREY)
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
"""Panels of a diagnosis: title, and for each measure in it legend and color."""


@contextmanager
def new_figure(paths: Paths, width: float, height: float, footnote: str = "") -> Iterator[Figure]:
    """A figure of so many inches that is saved to every path at the end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if footnote:
            figure.supxlabel(fill(footnote, int(16 * width)), fontsize=7, color=GREY)
        for path in paths:
            figure.savefig(path, dpi=150)


def plot_costs(
    models: Mapping[str, pd.DataFrame],
    paths: Paths,
    footnote: str = "",
    *,
    published: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Top-1 against GMACs: a line for an early-exit curve, markers for single points.

    Args:
        models: name -> points with gmacs, top1, perhaps threshold and top1_std. Points with
            thresholds are a curve, with a band of top1_std.
        published: the same of papers, drawn lighter.
    """
    published = published or {}
    with new_figure(paths, 8.5, 4.8, footnote) as figure:
        axes = figure.subplots()
        curves = False
        looks = product(zip("D^vP", ("-", "--", ":", "-."), strict=True), PALETTE)
        for (name, points), ((marker, line), color) in zip(
            models.items(), cycle(looks), strict=False
        ):
            points = points.sort_values("gmacs")
            std = points.get("top1_std", pd.Series(index=points.index)).astype(float)
            if len(points) > 1 and "threshold" in points and points["threshold"].notna().any():
                curves = True
                axes.plot("gmacs", "top1", data=points, color=color, ls=line, label=name)
                low, high = points["top1"] - std.fillna(0), points["top1"] + std.fillna(0)
                axes.fill_between(points["gmacs"], low, high, color=color, alpha=0.2, lw=0)
                axes.plot("gmacs", "top1", "o", data=points.head(1), color=color, label="")
                axes.plot("gmacs", "top1", "s", data=points.tail(1), color=color, label="")
            else:
                style: Any = {"color": color, "label": name, "fmt": marker, "capsize": 3}
                axes.errorbar(points["gmacs"], points["top1"], yerr=std, **style)
        for marker, text in (("o", "first pass alone"), ("s", "all passes")) if curves else ():
            axes.plot([], [], color=GREY, marker=marker, ls="none", label=text)
        for (name, points), marker in zip(published.items(), cycle("o^vsP*X<>dh"), strict=False):
            style = {"color": GREY, "alpha": 0.55, "ls": ":", "lw": 1, "ms": 5, "label": name}
            points = points.sort_values("gmacs")
            axes.plot("gmacs", "top1", data=points, marker=marker, **style)
        axes.set(xlabel=COST, ylabel="top-1 (%)")
        axes.margins(0.06, 0.1)
        figure.legend(loc="outside right upper", fontsize=8)


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Accuracy against cost of early exit, with the operating points that rules chose."""
    points = pd.DataFrame([dict(point) for point in evaluation.operating_points])
    points = points.drop(columns="threshold")[points["chosen_on"] > 0].dropna(subset="top1")
    certified = points["rule"].str.contains("<=")
    models = {
        "early exit": pd.DataFrame([dict(point) for point in evaluation.curve]),
        "thresholds of rules": points[~certified],
        "thresholds with bounded risk": points[certified],
    }
    plot_costs({name: table for name, table in models.items() if len(table)}, [path])


def plot_differences(
    rows: Mapping[str, Mapping[str, Any]], paths: Paths, footnote: str = ""
) -> None:
    """The difference in top-1 with its interval over images, a line per named comparison.

    Args:
        rows: see `lfvit.results.paired.compare_models`.
    """
    seeds = max(len(row["per_seed"]) for row in rows.values())
    with new_figure(paths, 8, 1.2 + 0.36 * len(rows), footnote) as figure:
        axes = figure.subplots()
        for y, row in enumerate(rows.values()):
            interval = [row["low"], row["high"]]
            axes.plot(interval, [y, y], color=BLUE, lw=2.5, solid_capstyle="butt")
            if seeds > 1:
                axes.plot(row["per_seed"], [y] * len(row["per_seed"]), "|", color=ORANGE, ms=9)
            axes.plot(row["difference"], y, "o", color=BLUE, ms=6)
        axes.axvline(0, color=GREY, lw=1, ls=":")
        names = [f"{name}\n{row['cost']:.0f} % of the cost" for name, row in rows.items()]
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        orange = "; orange: single seeds" if seeds > 1 else ""
        axes.set_xlabel(f"difference in top-1, points\n(line: 95 % interval over images{orange})")


class Panel(NamedTuple):
    """Lines over one column of rows, with a band of ``KEY_std`` where the rows have it.

    Attributes:
        rows: a row without a value is left out of a line.
        x: key and title of the horizontal axis.
        y: title of the vertical axis.
        lines: key -> legend and color.
    """

    rows: Sequence[Mapping[str, Any]]
    x: tuple[str, str]
    y: str
    lines: Mapping[str, tuple[str, str]]

    def draw(self, axes: Axes) -> None:
        """The lines, with a legend below."""
        for key, (legend, color) in self.lines.items():
            rows = pd.DataFrame(self.rows).dropna(subset=[key]).astype({key: float})
            axes.plot(self.x[0], key, "o-", data=rows, ms=4, color=color, label=legend)
            if f"{key}_std" in rows:
                std = rows[f"{key}_std"].astype(float)
                low, high = rows[key] - std, rows[key] + std
                axes.fill_between(rows[self.x[0]], low, high, color=color, alpha=0.15, lw=0)
        axes.set(xlabel=self.x[1], ylabel=self.y)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=8)


def plot_panels(panels: Sequence[Sequence[Panel]], paths: Paths, footnote: str = "") -> None:
    """Rows of panels, all of the same length."""
    width, height = 1.5 + 4.5 * len(panels[0]), 0.4 + 4 * len(panels)
    with new_figure(paths, width, height, footnote) as figure:
        grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
        for axes, panel in zip(grid.flat, [p for row in panels for p in row], strict=True):
            panel.draw(axes)


def plot_diagnosis(diagnosis: Mapping[str, Any], paths: Paths) -> None:
    """The content of diagnose.json: four panels over block depth, one row of them per pass."""
    passes: dict[int, list[Mapping[str, Any]]] = {}
    for row in diagnosis["rows"]:
        passes.setdefault(row["pass"], []).append(row)
    panels = [
        [
            Panel(rows, ("block", "block"), f"pass {number}: {title}", lines)
            for title, lines in PANELS.items()
        ]
        for number, rows in passes.items()
    ]
    footnote = (
        f"{diagnosis['method']['name']}, {diagnosis['images']} images. Bands: one standard "
        "deviation over images. Block 0: the input of the first block. LF: the "
        f"{100 * diagnosis['removed']:g} % of tokens that receive least attention, HF: the others."
    )
    plot_panels(panels, paths, footnote)


def plot_confusion(matrix: pd.DataFrame, path: Path) -> None:
    """A confusion matrix in shares of each row, with the numbers of images in it."""
    counts = matrix.to_numpy()
    side = max(4.0, 0.42 * len(counts))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 1.5, side + 1), layout="constrained")
        axes = figure.subplots()
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(counts)), [str(c) for c in matrix.columns], rotation=90)
        axes.set_yticks(range(len(counts)), [str(c) for c in matrix.index])
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        figure.savefig(path, dpi=120)

"""The figures of artifacts, drawn like the papers' from rows of numbers.

Every function takes the files to write and a footnote, which says at which scale the numbers were
made. Published points are drawn lighter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lfvit.results.old.diagnosis import PANELS, draw_measure
from lfvit.results.old.plots import BLUE, ENDS, GREEN, GREY, ORANGE, PALETTE, STYLE
from lfvit.tracking.pictures import TITLE, Prediction, draw_frames, second_pass_image

Rows = Sequence[Mapping[str, Any]]
Paths = Sequence[Path]
COST = "GMACs per image (multiply-accumulates)"
MARKERS = "o^vsP*X<>dh"


@contextmanager
def _page(paths: Paths, footnote: str, width: float, height: float) -> Iterator[Figure]:
    """A figure with a footnote, saved into every file at the end."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.supxlabel(footnote, fontsize=7, color=GREY, wrap=True)
        for path in paths:
            figure.savefig(path, dpi=150)


def plot_costs(
    curves: Mapping[str, Rows],
    published: Mapping[str, Rows],
    together: bool,
    paths: Paths,
    footnote: str,
) -> None:
    """Top-1 against GMACs: a line for a series of points, a marker for a single one.

    Args:
        curves: name -> points with gmacs and top1.
        published: the same from papers.
        together: whether both are on one scale; otherwise they get axes of their own.
    """
    apart = bool(published) and not together
    with _page(paths, footnote, 10.5 if apart else 7.5, 4.8) as figure:
        ours, *rest = figure.subplots(1, 2 if apart else 1, squeeze=False)[0]
        theirs = rest[0] if rest else ours
        colours = cycle(PALETTE)
        for (name, points), colour in zip(curves.items(), colours, strict=False):
            _cost_line(ours, name, points, colour, 1.0)
        if any(_is_curve(points) for points in curves.values()):
            for marker, text in ENDS.values():
                ours.plot([], [], marker, color=GREY, label=text)
        markers = cycle(MARKERS)
        for (name, points), marker in zip(published.items(), markers, strict=False):
            _cost_line(theirs, name, points, GREY, 0.55, marker)
        for axes, title in ((ours, "ours"), (theirs, "published")) if apart else ((ours, ""),):
            axes.set(xlabel=COST, ylabel="top-1 (%)", title=title)
            axes.margins(0.06, 0.1)
            axes.legend(frameon=False, fontsize=8)


def _cost_line(
    axes: Axes, name: str, points: Rows, colour: str, alpha: float, marker: str = "D"
) -> None:
    """A line for a curve of thresholds, its ends marked; markers for points of several models."""
    points = sorted(points, key=lambda point: point["gmacs"])
    costs, accuracy = ([point[key] for point in points] for key in ("gmacs", "top1"))
    style: Any = {"color": colour, "alpha": alpha}
    if _is_curve(points) and marker == "D":
        axes.plot(costs, accuracy, label=name, **style)
        for place, (end, _) in zip((0, -1), ENDS.values(), strict=True):
            axes.plot(costs[place], accuracy[place], end, ls="none", **style)
    else:
        axes.plot(costs, accuracy, marker, ls=":", lw=1, ms=5, label=name, **style)


def _is_curve(points: Rows) -> bool:
    return any(point.get("eta") is not None for point in points)


def plot_sweep(
    rows: Rows,
    x: tuple[str, str],
    left: Mapping[str, str],
    right: Mapping[str, str],
    paths: Paths,
    footnote: str,
) -> None:
    """Measures against a setting, on a left and a right axis.

    Args:
        rows: with the keys below.
        x, left, right: keys and titles.
    """
    with _page(paths, footnote, 7, 4.5) as figure:
        axes = figure.subplots()
        for (key, title), colour in zip(left.items(), (BLUE, GREEN), strict=False):
            _line(axes, rows, x[0], key, title, colour, "-")
        axes.set(xlabel=x[1], ylabel=", ".join(left.values()))
        if right:
            other = axes.twinx()
            for (key, title), colour in zip(right.items(), (ORANGE, GREY), strict=False):
                _line(other, rows, x[0], key, title, colour, "--")
            other.set(ylabel=", ".join(right.values()))
            other.grid(False)
            other.spines["right"].set_visible(True)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _line(axes: Axes, rows: Rows, x: str, key: str, title: str, colour: str, style: str) -> None:
    known = [row for row in rows if row.get(key) is not None]
    places, values = [row[x] for row in known], [row[key] for row in known]
    axes.plot(places, values, style, marker="o", ms=4, color=colour, label=title)


def plot_passes(rows: Rows, paths: Paths, footnote: str) -> None:
    """Images answered right by each pass as eta varies, and accuracy against cost (their Figure 7).

    Args:
        rows: with eta, right_first and right_second (% of the images), top1, gmacs.
    """
    with _page(paths, footnote, 10.5, 4.5) as figure:
        left, right = figure.subplots(1, 2)
        etas = [row["eta"] for row in rows]
        first = [row["right_first"] for row in rows]
        second = [row["right_second"] for row in rows]
        width = 0.8 * min(b - a for a, b in pairwise(etas))
        left.bar(etas, first, width, color=BLUE, label="right in the first pass")
        left.bar(etas, second, width, first, color=ORANGE, label="right in the second pass")
        left.set(xlabel="threshold η", ylabel="images (%)")
        left.set_ylim(0, 1.2 * max(a + b for a, b in zip(first, second, strict=True)) or 1)
        left.legend(frameon=False, loc="upper center", ncols=2, fontsize=8)
        costs, accuracy = ([row[key] for row in rows] for key in ("gmacs", "top1"))
        right.plot(costs, accuracy, "o-", ms=4, color=BLUE)
        for row in rows[::2]:
            place = row["gmacs"], row["top1"]
            right.annotate(
                f"η = {row['eta']:g}", place, (4, -10), textcoords="offset points", fontsize=7
            )
        right.set(xlabel=COST, ylabel="top-1 (%)")
        right.margins(0.12)


def plot_regions(pairs: Sequence[Mapping[str, Prediction]], paths: Paths, footnote: str) -> None:
    """Images in rows, models in columns: what became fine in colour, the rest pale.

    Args:
        pairs: for each image, model -> its prediction.
    """
    names = list(pairs[0])
    with _page(paths, footnote, 2.6 * (len(names) + 1), 2.7 * len(pairs) + 0.4) as figure:
        grid = figure.subplots(len(pairs), len(names) + 1, squeeze=False)
        for line, predictions in zip(grid, pairs, strict=True):
            for axes in line:
                axes.set_axis_off()
            line[0].imshow(next(iter(predictions.values())).image)
            for axes, (name, prediction) in zip(line[1:], predictions.items(), strict=True):
                axes.imshow(second_pass_image(prediction))
                draw_frames(axes, prediction)
                axes.set_title(f"{name}: {prediction.caption}", **TITLE)
        grid[0, 0].set_title("image", **TITLE)


def plot_depth(rows: Rows, panels: Iterable[str], noise: Rows, paths: Paths, footnote: str) -> None:
    """Panels of a diagnosis over block depth, and accuracy under noise on two sets of tokens.

    Args:
        rows: of one pass of diagnose.json.
        panels: titles in `lfvit.results.old.diagnosis.PANELS`.
        noise: with strength, high and low (top-1 in percent); empty for no such panel.
    """
    titles = list(panels)
    count = len(titles) + bool(noise)
    with _page(paths, footnote, 1.5 + 4.2 * count, 4) as figure:
        line = figure.subplots(1, count, squeeze=False)[0]
        for axes, title in zip(line, titles, strict=False):
            for measure, (legend, colour) in PANELS[title].items():
                draw_measure(axes, rows, measure, colour)
                axes.lines[-1].set_label(legend)
            axes.set(xlabel="block", title=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False, fontsize=8)
        if noise:
            for key, legend, colour in (
                ("high", "on HF tokens", ORANGE),
                ("low", "on LF tokens", BLUE),
            ):
                _line(line[-1], noise, "strength", key, legend, colour, "-")
            line[-1].set(xlabel="noise", ylabel="top-1 (%)", title="Noise on one set")
            line[-1].legend(frameon=False, fontsize=8)


def plot_one_block(rows: Rows, whole: float, paths: Paths, footnote: str) -> None:
    """Overlap of two choices of tokens, and accuracy with a reduction in one block (Figure 6).

    Args:
        rows: with block, overlap (in [0, 1]), and top-1 in percent under evit and frequency.
        whole: top-1 in percent without reduction.
    """
    with _page(paths, footnote, 10.5, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        left.bar([row["block"] for row in rows], [row["overlap"] for row in rows], color=GREEN)
        left.set(xlabel="block", ylabel="overlap with EViT (IoU)", ylim=(0, 1))
        left.yaxis.set_major_formatter(PercentFormatter(1))
        for key, legend, colour in (
            ("frequency", "frequency-aware", ORANGE),
            ("evit", "EViT", BLUE),
        ):
            _line(right, rows, "block", key, legend, colour, "-")
        right.axhline(whole, color=GREY, ls=":", label="no reduction")
        right.set(xlabel="reduced block", ylabel="top-1 (%)")
        right.legend(frameon=False, fontsize=8)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_groups(
    rows: Rows,
    group: str,
    bars: str,
    panel: str,
    value: tuple[str, str],
    paths: Paths,
    footnote: str,
) -> None:
    """Grouped bars, one panel beside the other.

    Args:
        rows: with the keys below.
        group: key of the groups along the axis. bars: of the bars in a group. panel: of the panels.
        value: key and title of the height.
    """
    panels, names, groups = (list(dict.fromkeys(r[k] for r in rows)) for k in (panel, bars, group))
    with _page(paths, footnote, 1 + 4.5 * len(panels), 4.4) as figure:
        line = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        width = 0.8 / len(names)
        for axes, title in zip(line, panels, strict=True):
            for number, (name, colour) in enumerate(zip(names, cycle(PALETTE), strict=False)):
                found = {
                    r[group]: r[value[0]] for r in rows if r[panel] == title and r[bars] == name
                }
                places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(groups))]
                heights = [found.get(key) or 0 for key in groups]
                axes.bar(places, heights, width, color=colour, label=name)
            axes.set_xticks(range(len(groups)), groups)
            axes.set(title=f"{panel}: {title}", xlabel=group)
        line[0].set_ylabel(value[1])
        handles, legends = line[0].get_legend_handles_labels()
        figure.legend(handles, legends, loc="outside upper center", ncols=3, frameon=False)

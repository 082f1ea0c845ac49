"""Drawing the figures of artifacts from rows of numbers.

Every function takes the scale, whose label stands under the figure, and the files to write.
Published points are drawn lighter. Legends stand beside what they explain, never on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lfvit.results.artifacts.settings import Scale
from lfvit.results.plots import BLUE, COST, GREEN, GREY, ORANGE, PALETTE, PANELS, new_figure
from lfvit.tracking.pictures import Prediction, draw_frames, second_pass_image

Rows = Sequence[Mapping[str, Any]]
Paths = Sequence[Path]
MARKERS = "o^vsP*X<>dh"


def _lines(
    axes: Axes, rows: Rows, x: str, lines: Mapping[str, tuple[str, str]], style: str = "-"
) -> None:
    """Lines over one column; a band of ``KEY_std`` around a line where the rows have it.

    Args:
        rows: a row without a value is left out.
        x: key of the horizontal axis.
        lines: key -> legend and colour.
    """
    for key, (legend, colour) in lines.items():
        known = [row for row in rows if row.get(key) is not None]
        xs, ys = [row[x] for row in known], [row[key] for row in known]
        axes.plot(xs, ys, style, marker="o", ms=4, color=colour, label=legend)
        if any(f"{key}_std" in row for row in known):
            low, high = ([r[key] + sign * r[f"{key}_std"] for r in known] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)


def _legend(axes: Axes, columns: int = 2) -> None:
    """A legend below the axes."""
    place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": columns}
    axes.legend(fontsize=8, **place)


def plot_costs(
    curves: Mapping[str, Rows], published: Mapping[str, Rows], scale: Scale, paths: Paths
) -> None:
    """Top-1 against GMACs: a line for a curve of thresholds, markers for single points.

    Published points share the axes at a comparable scale, and have axes beside them otherwise.

    Args:
        curves: name -> points with gmacs, top1 and eta.
        published: the same from papers.
    """
    apart = bool(published) and not scale.comparable
    with new_figure(paths, 12 if apart else 8.5, 4.8, scale.label) as figure:
        ours, *rest = figure.subplots(1, 2 if apart else 1, squeeze=False)[0]
        theirs = rest[0] if rest else ours
        for (name, points), colour in zip(curves.items(), cycle(PALETTE), strict=False):
            points = sorted(points, key=lambda point: point["gmacs"])
            costs, accuracy = ([p[key] for p in points] for key in ("gmacs", "top1"))
            if any(point.get("eta") is not None for point in points):
                ours.plot(costs, accuracy, color=colour, label=name)
                ours.plot(costs[0], accuracy[0], "o", color=colour)
                ours.plot(costs[-1], accuracy[-1], "s", color=colour)
            else:
                ours.plot(costs, accuracy, "D", ls=":", lw=1, ms=5, color=colour, label=name)
        if any(point.get("eta") is not None for points in curves.values() for point in points):
            for marker, text in (("o", "first pass alone"), ("s", "all passes")):
                ours.plot([], [], marker, color=GREY, label=text)
        for (name, points), marker in zip(published.items(), cycle(MARKERS), strict=False):
            points = sorted(points, key=lambda point: point["gmacs"])
            costs, accuracy = ([p[key] for p in points] for key in ("gmacs", "top1"))
            style: Any = {"color": GREY, "alpha": 0.55, "ls": ":", "lw": 1, "ms": 5, "label": name}
            theirs.plot(costs, accuracy, marker, **style)
        for axes, title in ((ours, "ours" if apart else ""), *([(theirs, "published")] * apart)):
            axes.set(xlabel=COST, ylabel="top-1 (%)", title=title)
            axes.margins(0.06, 0.1)
        figure.legend(loc="outside right upper", fontsize=8)


def plot_sweep(
    rows: Rows,
    x: tuple[str, str],
    left: Mapping[str, str],
    right: Mapping[str, str],
    scale: Scale,
    paths: Paths,
) -> None:
    """Measures against a setting, on a left and a right axis.

    Args:
        rows: with the keys below.
        x, left, right: keys and titles.
    """
    with new_figure(paths, 7, 4.5, scale.label) as figure:
        axes = figure.subplots()
        pairs = zip(left.values(), (BLUE, GREEN), strict=False)
        _lines(axes, rows, x[0], dict(zip(left, pairs, strict=False)))
        axes.set(xlabel=x[1], ylabel=", ".join(left.values()))
        if right:
            other = axes.twinx()
            pairs = zip(right.values(), (ORANGE, GREY), strict=False)
            _lines(other, rows, x[0], dict(zip(right, pairs, strict=False)), "--")
            other.set(ylabel=", ".join(right.values()))
            other.grid(False)
            other.spines["right"].set_visible(True)
        figure.legend(loc="outside upper center", ncols=3)


def plot_passes(rows: Rows, scale: Scale, paths: Paths) -> None:
    """Images answered correctly by each pass as eta varies, and accuracy against cost.

    LF-ViT, Figure 7.

    Args:
        rows: with eta, right_first and right_second (% of the images), top1, gmacs.
    """
    with new_figure(paths, 10.5, 4.5, scale.label) as figure:
        left, right = figure.subplots(1, 2)
        etas, first, second = (
            [row[key] for row in rows] for key in ("eta", "right_first", "right_second")
        )
        width = 0.8 * min(b - a for a, b in pairwise(etas))
        left.bar(etas, first, width, color=BLUE, label="right in the first pass")
        left.bar(etas, second, width, first, color=ORANGE, label="right in the second pass")
        left.set(xlabel="threshold η", ylabel="images (%)")
        _legend(left)
        right.plot([r["gmacs"] for r in rows], [r["top1"] for r in rows], "o-", ms=4, color=BLUE)
        for row in rows[::2]:
            place = row["gmacs"], row["top1"]
            text: Any = {"textcoords": "offset points", "fontsize": 7}
            right.annotate(f"η = {row['eta']:g}", place, (4, -10), **text)
        right.set(xlabel=COST, ylabel="top-1 (%)")
        right.margins(0.12)


def plot_regions(
    predictions: Mapping[str, Sequence[Prediction]], scale: Scale, paths: Paths
) -> None:
    """Images in rows, models in columns: fine patches in colour, the rest pale.

    Args:
        predictions: model -> predictions on the same images.
    """
    images = next(iter(predictions.values()))
    columns = 1 + len(predictions)
    with new_figure(paths, 2.6 * columns, 2.7 * len(images) + 0.4, scale.label) as figure:
        grid = figure.subplots(len(images), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image in zip(grid[:, 0], images, strict=True):
            axes.imshow(image.image)
        for line, (name, seen) in zip(grid.T[1:], predictions.items(), strict=True):
            for axes, prediction in zip(line, seen, strict=True):
                axes.imshow(second_pass_image(prediction))
                draw_frames(axes, prediction)
                axes.set_title(f"{name}: {prediction.caption}", fontsize=9)


def plot_depth(rows: Rows, panels: Iterable[str], noise: Rows, scale: Scale, paths: Paths) -> None:
    """Panels of a diagnosis over block depth, and accuracy under noise on two sets of tokens.

    Args:
        rows: of one pass of diagnose.json.
        panels: titles in `lfvit.results.plots.PANELS`.
        noise: with strength, high and low (top-1 in percent); empty for no such panel.
    """
    titles = list(panels)
    count = len(titles) + bool(noise)
    with new_figure(paths, 1.5 + 4.2 * count, 4.2, scale.label) as figure:
        line = figure.subplots(1, count, squeeze=False)[0]
        for axes, title in zip(line, titles, strict=False):
            _lines(axes, rows, "block", PANELS[title])
            axes.set(xlabel="block", title=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _legend(axes)
        if noise:
            sets = {"high": ("on HF tokens", ORANGE), "low": ("on LF tokens", BLUE)}
            _lines(line[-1], noise, "strength", sets)
            line[-1].set(xlabel="noise", ylabel="top-1 (%)", title="Noise on one set")
            _legend(line[-1])


def plot_one_block(rows: Rows, scale: Scale, paths: Paths) -> None:
    """Overlap of two choices of tokens, and accuracy with a reduction in one block (Figure 6).

    Args:
        rows: with block, overlap (in [0, 1]), and top-1 in percent under evit, frequency and
            without reduction (whole).
    """
    with new_figure(paths, 10.5, 4.2, scale.label) as figure:
        left, right = figure.subplots(1, 2)
        left.bar([row["block"] for row in rows], [row["overlap"] for row in rows], color=GREEN)
        left.set(xlabel="block", ylabel="overlap with EViT (IoU)", ylim=(0, 1))
        left.yaxis.set_major_formatter(PercentFormatter(1))
        lines = {"frequency": ("frequency-aware", ORANGE), "evit": ("EViT", BLUE)}
        _lines(right, rows, "block", lines)
        right.axhline(rows[0]["whole"], color=GREY, ls=":", label="no reduction")
        right.set(xlabel="reduced block", ylabel="top-1 (%)")
        _legend(right, 3)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))

"""Drawing the figures of artifacts from rows of numbers.

Every function takes the scale, whose label stands under the figure, and the files to write.
Published points are drawn lighter. Legends stand beside what they explain, never on it.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from lfvit.results.artifacts.settings import Scale
from lfvit.results.plots import COST, GREY, PALETTE, new_figure
from lfvit.tracking.pictures import Prediction, draw_frames, second_pass_image

Rows = Sequence[Mapping[str, Any]]
Paths = Sequence[Path]


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
        grid = figure.subplots(1, 1 + apart, squeeze=False)[0]
        for name, points, colour in zip(curves, curves.values(), cycle(PALETTE), strict=False):
            if any(point.get("eta") is not None for point in points):
                _draw_costs(grid[0], points, color=colour, label=name)
                _draw_costs(grid[0], [min(points, key=_cost)], color=colour, marker="o")
                _draw_costs(grid[0], [max(points, key=_cost)], color=colour, marker="s")
            else:
                _draw_costs(grid[0], points, color=colour, label=name, marker="D", ls="none")
        for marker, text in (("o", "first pass alone"), ("s", "all passes")):
            grid[0].plot([], [], color=GREY, marker=marker, ls="none", label=text)
        for name, points, marker in zip(
            published, published.values(), cycle("o^vsP*X<>dh"), strict=False
        ):
            style: Any = {"color": GREY, "alpha": 0.55, "ls": ":", "lw": 1, "ms": 5}
            _draw_costs(grid[-1], points, label=name, marker=marker, **style)
        for axes, title in zip(grid, ("ours", "published") if apart else ("",), strict=True):
            axes.set(xlabel=COST, ylabel="top-1 (%)", title=title)
            axes.margins(0.06, 0.1)
        figure.legend(loc="outside right upper", fontsize=8)


def _cost(point: Mapping[str, Any]) -> float:
    return float(point["gmacs"])


def _draw_costs(axes: Axes, points: Rows, **style: Any) -> None:
    points = sorted(points, key=_cost)
    axes.plot([_cost(point) for point in points], [point["top1"] for point in points], **style)


class Panel(NamedTuple):
    """Lines over one column of rows, with a band of ``KEY_std`` where the rows have it.

    Attributes:
        rows: a row without a value is left out of a line.
        x: key and title of the horizontal axis.
        y: title of the vertical axis.
        lines: key -> legend and colour.
    """

    rows: Rows
    x: tuple[str, str]
    y: str
    lines: Mapping[str, tuple[str, str]]


def plot_panels(panels: Sequence[Panel], scale: Scale, paths: Paths) -> None:
    """Panels side by side, a legend below each."""
    with new_figure(paths, 1.5 + 4.5 * len(panels), 4.4, scale.label) as figure:
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for key, (legend, colour) in panel.lines.items():
                known = [row for row in panel.rows if row.get(key) is not None]
                xs, ys = [row[panel.x[0]] for row in known], [row[key] for row in known]
                axes.plot(xs, ys, "o-", ms=4, color=colour, label=legend)
                if any(f"{key}_std" in row for row in known):
                    low, high = ([r[key] + s * r[f"{key}_std"] for r in known] for s in (-1, 1))
                    axes.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
            axes.set(xlabel=panel.x[1], ylabel=panel.y)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=8)


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

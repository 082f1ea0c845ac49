"""Figures, drawn from the contents of result files."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"  # safe for colour blindness
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#B8A400", "#000000", GREY)
ENDS = {"first": ("o", "first pass alone"), "second": ("s", "both passes")}
SIZES = "o^sDv<>"  # of batches, in order
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
}


def plot_evaluation(found: Mapping[str, Any], path: Path) -> None:
    """evaluate.json of a two-pass model as a picture: accuracy against cost, and against eta."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_curve(left, found, "early exit", BLUE)
        draw_operating_points(left, found["calibration"])
        finish_cost_axes(left)
        draw_thresholds(right, found["curve"])
        figure.savefig(path, dpi=150)


def literal(name: str) -> str:
    """A name as it is: matplotlib reads what stands between two dollars as a formula."""
    return name.replace("$", r"\$")


def plot_comparison(models: Mapping[str, Mapping[str, Any]], paths: Iterable[Path]) -> None:
    """Several evaluate.json in one plot of accuracy against GMACs."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        colours = cycle(PALETTE)
        two_pass = sum(bool(found["curve"]) for found in models.values())
        for (name, found), colour in zip(models.items(), colours, strict=False):
            if found["curve"]:
                draw_curve(axes, found, name, colour, name_ends=two_pass == 1)
            else:
                point = found["first"]
                axes.plot(
                    point["gmacs"], point["top1"], "D", color=colour, label=literal(name), zorder=4
                )
        if two_pass > 1:  # once for all of them
            for marker, text in ENDS.values():
                axes.plot([], [], marker, color=GREY, label=text)
        finish_cost_axes(axes)
        for path in paths:
            figure.savefig(path, dpi=150)


def draw_curve(
    axes: Axes, found: Mapping[str, Any], name: str, colour: str, name_ends: bool = True
) -> None:
    """The early-exit curve of a two-pass model, with its two ends marked."""
    curve = sorted(found["curve"], key=lambda point: point["gmacs"])
    costs, accuracy = ([point[key] for point in curve] for key in ("gmacs", "top1"))
    axes.plot(costs, accuracy, color=colour, label=literal(name))
    for end, (marker, text) in ENDS.items():
        point = found[end]
        axes.plot(point["gmacs"], point["top1"], marker, color=colour, zorder=3)
        if not name_ends:
            continue
        axes.annotate(
            text,
            (point["gmacs"], point["top1"]),
            xytext=(0, -14),
            textcoords="offset points",
            fontsize=8,
            ha="left" if marker == "o" else "right",
            color=colour,
        )


def draw_operating_points(axes: Axes, calibration: Mapping[str, Any]) -> None:
    """The thresholds chosen on one part of the images, as they do on the other."""
    certificates = calibration["risk"]["certificates"] if calibration["risk"] else []
    groups = (
        (calibration["rules"], "D", ORANGE, "chosen on other images"),
        (certificates, "^", GREEN, "chosen, with bounded risk"),
    )
    for choices, marker, colour, text in groups:
        points = [choice["reported"] for choice in choices if choice["reported"] is not None]
        if points:
            axes.plot(
                [p["gmacs"] for p in points],
                [p["top1"] for p in points],
                marker,
                color=colour,
                ms=5,
                ls="none",
                label=text,
                zorder=4,
            )


def draw_thresholds(axes: Axes, curve: list[dict[str, float]]) -> None:
    """Accuracy and the share of images that exit, against the threshold eta."""
    etas = [p["threshold"] for p in curve]
    axes.plot(etas, [p["top1"] for p in curve], color=BLUE)
    axes.set(xlabel="threshold η", ylabel="top-1 (%)", xlim=(0, 1.01))
    axes.yaxis.label.set_color(BLUE)
    exits = axes.twinx()
    exits.plot(etas, [100 * p["exit_fraction"] for p in curve], color=ORANGE, ls="--")
    exits.set(ylabel="answered by the first pass (%)", ylim=(0, 100))
    exits.yaxis.label.set_color(ORANGE)
    exits.grid(False)
    exits.spines["right"].set_visible(True)


def comparisons(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows of benchmark.py that are compared with each other, under a title."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        compiled = "compiled" if row["compiled"] else "not compiled"
        title = f"{row['task'].capitalize()}, {row['precision']}, {compiled}"
        groups.setdefault(title, []).append(row)
    return list(groups.items())


def plot_speed(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of benchmark.py: measured speed-up against the ratio of MACs, a picture per setting."""
    groups = comparisons(rows)
    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6 * columns, 4.5 * lines), layout="constrained")
        pictures = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, (title, group) in zip(pictures, groups, strict=False):
            _draw_speed(axes, title, group)
        for axes in pictures[len(groups) :]:
            axes.set_axis_off()
        figure.savefig(path, dpi=110)


def _draw_speed(axes: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(row["model"] for row in rows))
    sizes = sorted({row["batch_size"] for row in rows})
    for row in rows:
        axes.plot(
            row["ideal_speedup"],
            row["measured_speedup"],
            SIZES[sizes.index(row["batch_size"]) % len(SIZES)],
            color=PALETTE[names.index(row["model"]) % len(PALETTE)],
        )
    for name, colour in zip(names, cycle(PALETTE), strict=False):
        axes.plot([], [], "-", color=colour, label=literal(name))
    for size, marker in zip(sizes, cycle(SIZES), strict=False):
        axes.plot([], [], marker, color=GREY, ls="", label=f"batch of {size}")
    end = max(max(row["ideal_speedup"], row["measured_speedup"]) for row in rows) * 1.05
    axes.plot([0, end], [0, end], color=GREY, ls=":", lw=1, zorder=0)
    base = rows[0]["compared_with"]
    axes.set(
        title=title,
        xlabel=f"ideal speed-up: MACs of {base} / MACs",
        ylabel=f"measured speed-up over {base}",
        xlim=(0, end),
        ylim=(0, end),
    )
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def finish_cost_axes(axes: Axes) -> None:
    """Names, limits and legend of a plot of accuracy against cost."""
    axes.margins(0.08, 0.15)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    axes.set(xlabel="GMACs per image (multiply-accumulates)", ylabel="top-1 (%)")
    axes.legend(frameon=False, loc="lower right")

"""Where a model looked, drawn over the image."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lfvit.report.plots import BLUE, ORANGE, STYLE


class Look(NamedTuple):
    """One image with what a two-pass model did to it.

    image: (S, S, 3) uint8. view: (S/2, S/2, 3) uint8. gca: (g, g). region: row and column of the
    window or None. region_size: m. fine: (4k,) fine patches, row-major. exited: whether the first
    pass answered. title: drawn above. box: x0, y0, x1, y1 of the object if known.
    """

    image: np.ndarray
    view: np.ndarray
    gca: Tensor
    region: Tensor | None
    region_size: int
    fine: Tensor
    exited: bool
    title: str
    box: tuple[int, ...] | None = None


def save_looks(looks: list[Look], path: Path) -> None:
    """One row per image: the half-resolution view, class attention over it, the second look."""
    rows = len(looks)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.5, 2.75 * rows), layout="constrained")
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes, look in zip(grid, looks, strict=True):
            _draw(axes, look)
        figure.savefig(path, dpi=120)


def save_image(image: np.ndarray, title: str, path: Path) -> None:
    """An image with a title, for models that look once."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
        figure.savefig(path, dpi=120)


def _draw(axes: Any, look: Look) -> None:
    side = look.image.shape[0]
    seen, attention, second = axes
    for axis, title in zip(axes, ("first look", "class attention", _caption(look)), strict=True):
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
    seen.imshow(look.view)
    seen.set_title(look.title, fontsize=9, loc="left")
    attention.imshow(look.image.mean(axis=2), cmap="gray", extent=(0, side, side, 0))
    attention.imshow(
        look.gca.numpy(), cmap="inferno", alpha=0.6, extent=(0, side, side, 0), interpolation="nearest"
    )
    second.imshow(_coarse_outside(look), extent=(0, side, side, 0))
    _frame(second, look)
    if look.box is not None:
        x0, y0, x1, y1 = look.box
        second.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=1))


def _caption(look: Look) -> str:
    return "not needed" if look.exited else "second look"


def _coarse_outside(look: Look) -> np.ndarray:
    """What the second pass gets: full resolution in the fine patches, half and paler elsewhere."""
    side, patches = look.image.shape[0], 2 * look.gca.shape[0]
    patch = side // patches
    fine = np.zeros(patches * patches, dtype=bool)
    fine[look.fine.numpy()] = True
    mask = np.kron(fine.reshape(patches, patches), np.ones((patch, patch), dtype=bool))
    coarse = look.view.repeat(2, axis=0).repeat(2, axis=1)
    pale = (0.55 * coarse + 0.45 * 255).astype(np.uint8)
    return np.where(mask[..., None], look.image, pale)


def _frame(axes: Axes, look: Look) -> None:
    if look.region is None:
        return
    cell = look.image.shape[0] / look.gca.shape[0]
    row, column = look.region.tolist()
    size = look.region_size * cell
    colour, style = (BLUE, "--") if look.exited else (ORANGE, "-")
    axes.add_patch(
        Rectangle((column * cell, row * cell), size, size, fill=False, ec=colour, lw=2.5, ls=style)
    )

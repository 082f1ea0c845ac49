"""Where a model looked, drawn over the image."""

from pathlib import Path
from typing import IO, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

BLUE, ORANGE = "#0072B2", "#D55E00"  # safe for colour blindness
TITLE: Any = {"fontsize": 9, "parse_math": False}  # a class may be called "$5"


class Look(NamedTuple):
    """One image with what a model did to it.

    image: (S, S, 3) uint8. view: (S/2, S/2, 3) uint8. answer: class and probability in words.
    exited: whether the first (or only) pass answered. box: x0, y0, x1, y1 of the object if known.
    Of a two-pass model also: gca (g, g), fine (4k,) fine patches, row-major, and with a window
    selector region, row and column of the window, and region_size, m.
    """

    image: np.ndarray
    view: np.ndarray
    answer: str
    exited: bool
    box: tuple[int, ...] | None = None
    gca: Tensor | None = None
    fine: Tensor | None = None
    region: Tensor | None = None
    region_size: int = 0


def save_looks(looks: list[Look], path: Path | IO[bytes]) -> None:
    """One row per image: the half-resolution view, class attention over it, the second look.

    Of a one-pass model, the image alone.
    """
    panels = 1 if looks[0].gca is None else 3
    with mpl.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(2.6 * panels, 2.8 * len(looks)), layout="constrained")
        grid = figure.subplots(len(looks), panels, squeeze=False)
        for axes, look in zip(grid, looks, strict=True):
            for axis in axes:
                axis.set_axis_off()
            if look.gca is None:
                axes[0].imshow(look.image)
                axes[0].set_title(look.answer, **TITLE)
            else:
                _draw(axes, look, look.gca)
        figure.savefig(path, dpi=120)


def _draw(axes: Any, look: Look, gca: Tensor) -> None:
    side = look.image.shape[0]
    frame = (0, side, side, 0)
    seen, attention, second = axes
    seen.imshow(look.view, extent=frame)
    attention.imshow(look.image.mean(axis=2), cmap="gray", extent=frame)
    attention.imshow(gca.numpy(), cmap="inferno", alpha=0.6, extent=frame, interpolation="nearest")
    second.imshow(second_look(look), extent=frame)
    _frame(second, look)
    if look.box is not None:
        x0, y0, x1, y1 = look.box
        second.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=1))
    titles = ("first look", "class attention", "second look")
    answered = 0 if look.exited else 2
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(f"{title}: {look.answer}" if number == answered else title, **TITLE)
    if look.exited:
        second.set_title("second look: not needed", **TITLE)


def second_look(look: Look) -> np.ndarray:
    """(S, S, 3) uint8: what the second pass gets, all but the fine patches paler and coarse."""
    assert look.gca is not None
    assert look.fine is not None
    patches = 2 * look.gca.shape[0]
    patch = look.image.shape[0] // patches
    fine = np.zeros(patches * patches, dtype=bool)
    fine[look.fine.numpy()] = True
    mask = np.kron(fine.reshape(patches, patches), np.ones((patch, patch), dtype=bool))
    coarse = look.view.repeat(2, axis=0).repeat(2, axis=1)
    pale = (0.55 * coarse + 0.45 * 255).astype(np.uint8)
    return np.where(mask[..., None], look.image, pale)


def _frame(axes: Axes, look: Look) -> None:
    """The window: solid where the second pass looked, dashed where it would have."""
    if look.region is None or look.gca is None:
        return
    cell = look.image.shape[0] / look.gca.shape[0]
    row, column = look.region.tolist()
    size = look.region_size * cell
    colour, style = (BLUE, "--") if look.exited else (ORANGE, "-")
    axes.add_patch(
        Rectangle((column * cell, row * cell), size, size, fill=False, ec=colour, lw=2.5, ls=style)
    )


def over_attention(look: Look) -> np.ndarray:
    """(S, S, 3) uint8: the image in grey, with class attention over it, from dark to bright."""
    assert look.gca is not None
    gca = look.gca.double().numpy()
    low, high = gca.min(), gca.max()
    scaled = (gca - low) / (high - low) if high > low else np.zeros_like(gca)
    cell = look.image.shape[0] // gca.shape[0]
    colours = mpl.colormaps["inferno"](np.kron(scaled, np.ones((cell, cell))))[..., :3]
    grey = look.image.mean(axis=2, keepdims=True)
    return (0.4 * grey + 0.6 * 255 * colours).round().astype(np.uint8)

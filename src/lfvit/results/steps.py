"""The method in one picture, step by step, on one image."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lfvit.models.selection.windows import window_sums
from lfvit.models.two_pass import TwoPassViT
from lfvit.results.plots import BLUE, ORANGE, STYLE
from lfvit.tracking.pictures import TITLE, Look, second_look


def save_steps(model: TwoPassViT, images: torch.Tensor, look: Look, path: Path) -> None:
    """Draw what happens to one image, from the half-resolution view to the second pass's tokens.

    Args:
        images: (1, 3, S, S), normalised, on the model's device.
        look: the same image as `lfvit.commands.predict.look_at` returns it.
    """
    with torch.inference_mode():
        first = model.first_pass(images)
    gca, last = first.gca[0].cpu(), first.last[0].cpu().numpy()
    g, S = model.grid, look.image.shape[0]
    frame = (0, S, S, 0)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(10, 6.9), layout="constrained")
        axes: Any = figure.subplots(2, 3)
        for axis in axes.flat:
            axis.set_axis_off()
        photo, view, attention, average, windows, second = axes.flat
        photo.imshow(look.image, extent=frame)
        photo.set_title(f"the image, {2 * g} x {2 * g} patches", **TITLE)
        view.imshow(look.view, extent=frame)
        _grid(view, g, S)
        view.set_title(f"1. first look: {g} x {g} tokens at half resolution", **TITLE)
        attention.imshow(last, extent=frame, cmap="inferno", interpolation="nearest")
        attention.set_title("2. where the class token looks, last block", **TITLE)
        average.imshow(gca.numpy(), extent=frame, cmap="inferno", interpolation="nearest")
        average.set_title("3. its average over the deeper blocks", **TITLE)
        second.imshow(second_look(look), extent=frame)
        tokens = 1 + look.fine.numel() + g * g - look.fine.numel() // 4  # type: ignore[union-attr]
        second.set_title(f"5. second look: {tokens} tokens at two resolutions", **TITLE)
        if look.region is None:
            windows.imshow(_chosen(look, g), extent=frame, cmap="inferno", interpolation="nearest")
            windows.set_title("4. the cells that become fine", **TITLE)
        else:
            row, column = look.region.tolist()
            m, cell = look.region_size, S / g
            sums = window_sums(gca[None], m)[0].numpy()
            places = windows.imshow(sums, cmap="inferno", interpolation="nearest")
            figure.colorbar(places, ax=windows, shrink=0.7, ticks=[])
            windows.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=BLUE, lw=3))
            windows.set_title(f"4. attention inside every {m} x {m} window", **TITLE)
            for axis in (photo, average, second):
                corner = (column * cell, row * cell)
                box = Rectangle(corner, m * cell, m * cell, fill=False, ec=ORANGE, lw=2.5)
                axis.add_patch(box)
        figure.savefig(path, dpi=110)


def _grid(axis: Any, cells: int, side: int) -> None:
    for line in range(1, cells):
        axis.axhline(line * side / cells, color="white", lw=0.5, alpha=0.6)
        axis.axvline(line * side / cells, color="white", lw=0.5, alpha=0.6)


def _chosen(look: Look, g: int) -> np.ndarray:
    """(g, g), 1 where the coarse cell holds fine patches."""
    assert look.fine is not None
    row, column = look.fine.numpy() // (2 * g) // 2, look.fine.numpy() % (2 * g) // 2
    chosen = np.zeros((g, g))
    chosen[row, column] = 1
    return chosen

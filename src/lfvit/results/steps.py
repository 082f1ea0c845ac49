"""A two-pass model step by step, on one image, in one picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lfvit.data.datamodule import normalize
from lfvit.models.selectors.windows import window_sums
from lfvit.tracking.pictures import (
    BLUE,
    ORANGE,
    STYLE,
    TITLE,
    Prediction,
    second_pass_image,
)


def draw_steps(model: Any, prediction: Prediction, path: Path) -> None:
    """Draw the steps from the half-resolution image to the tokens of the second pass.

    Args:
        model: of two passes, in evaluation mode.
        prediction: of this model, see `lfvit.tracking.pictures.predict_images`.
        path: of the picture.
    """
    assert prediction.gca is not None
    assert prediction.fine_indices is not None
    pixels = torch.from_numpy(prediction.image).permute(2, 0, 1)[None]  # (1, 3, S, S)
    with torch.inference_mode():
        first = model.first_pass(normalize(pixels.to(next(model.parameters()).device)))
    gca, last = prediction.gca.numpy(), first.last[0].cpu().numpy()  # (g, g)
    g, k, S = gca.shape[0], len(prediction.fine_indices) // 4, prediction.image.shape[0]
    heat: Any = {"cmap": "inferno", "interpolation": "nearest"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.9), layout="constrained")
        axes: Any = figure.subplots(2, 3)
        image, coarse, attention, average, windows, second = axes.flat
        image.imshow(prediction.image)
        coarse.imshow(prediction.coarse_image, extent=(0, S, S, 0))
        for line in np.arange(1, g) * S / g:
            coarse.axhline(line, color="white", lw=0.5, alpha=0.6)
            coarse.axvline(line, color="white", lw=0.5, alpha=0.6)
        attention.imshow(last, **heat)
        average.imshow(gca, **heat)
        second.imshow(second_pass_image(prediction))
        if prediction.region is None:
            fine = prediction.fine_indices.numpy()
            cells = np.zeros((g, g))
            cells[fine // (2 * g) // 2, fine % (2 * g) // 2] = 1
            windows.imshow(cells, **heat)
            choice = "4. cells selected for full resolution"
        else:
            (row, column), m = prediction.region, prediction.region_size
            sums = windows.imshow(window_sums(prediction.gca[None], m)[0].numpy(), cmap="inferno")
            figure.colorbar(sums, ax=windows, shrink=0.7, ticks=[])
            windows.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=BLUE, lw=3))
            choice = f"4. attention inside every {m} x {m} window"
            for axis, cell, edge in ((image, S / g, 0), (average, 1, 0.5), (second, S / g, 0)):
                corner = (column * cell - edge, row * cell - edge)
                side = m * cell
                axis.add_patch(Rectangle(corner, side, side, fill=False, ec=ORANGE, lw=2.5))
        titles = (
            f"the image, {2 * g} x {2 * g} patches",
            f"1. first pass: {g} x {g} tokens at half resolution",
            "2. class attention, last block",
            "3. its average over the deeper blocks",
            choice,
            f"5. second pass: {1 + 4 * k + g * g - k} tokens, two resolutions",
        )
        for axis, title in zip(axes.flat, titles, strict=True):
            axis.set_axis_off()
            axis.set_title(title, **TITLE)
        figure.savefig(path, dpi=110)

"""The same weights on the same images in two precisions: what changes."""

from typing import Any

import torch
from torch import Tensor

from lfvit.measure.evaluation import Outputs, pass_accuracy
from lfvit.measure.thresholds import answers_of, confidence_of, sweep

REFERENCE = "32-true"
PRECISIONS = ("64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""What can be compared with it; names of Lightning's."""


def compare(
    reference: Outputs, other: Outputs, macs: tuple[float, float], threshold: float
) -> dict[str, Any]:
    """What another precision answers differently.

    Args:
        reference, other: of the same images in the same order.
        macs: of both passes.
        threshold: eta.

    Returns:
        ``first`` and ``second``: of each pass its top1 and the reference's, both in percent,
        ``same_answers``, the share of the images with the same class, and the absolute differences
        of probabilities (over images and classes) and confidences (the largest probability), mean
        and max. ``same_regions``: share of the images for which the same cells were selected.
        ``same_exits``: share that stay on their side of the threshold. ``curve``: the largest
        differences over all thresholds, of top-1 in points and of the share that exits. What only
        two-pass models have is None for others.
    """
    found: dict[str, Any] = {
        "first": _differences(reference.first, other.first, reference.targets),
        **dict.fromkeys(("second", "same_regions", "same_exits", "curve")),
    }
    if reference.second is None:
        return found
    found["second"] = _differences(reference.second, other.second, reference.targets)
    cells = [outputs.cells.sort(dim=1).values for outputs in (reference, other)]
    found["same_regions"] = (cells[0] == cells[1]).all(dim=1).float().mean().item()
    exits = [confidence_of(outputs.first) >= threshold for outputs in (reference, other)]
    found["same_exits"] = (exits[0] == exits[1]).float().mean().item()
    curves = [
        sweep(answers_of(outputs.first, outputs.second, outputs.targets), *macs)
        for outputs in (reference, other)
    ]
    pairs = list(zip(*curves, strict=True))
    found["curve"] = {
        "top1": max(abs(ours["top1"] - theirs["top1"]) for ours, theirs in pairs),
        "exit_fraction": max(
            abs(ours["exit_fraction"] - theirs["exit_fraction"]) for ours, theirs in pairs
        ),
    }
    return found


def _differences(reference: Tensor, other: Tensor, targets: Tensor) -> dict[str, Any]:
    """Of one pass, from its logits (N, C)."""
    same = (reference.argmax(dim=1) == other.argmax(dim=1)).float().mean().item()
    probabilities = (reference.double().softmax(1) - other.double().softmax(1)).abs()
    confidences = (confidence_of(reference) - confidence_of(other)).abs()
    return {
        "top1": pass_accuracy(other, targets)["top1"],
        "reference_top1": pass_accuracy(reference, targets)["top1"],
        "same_answers": same,
        "probability": _mean_and_max(probabilities),
        "confidence": _mean_and_max(confidences),
    }


def _mean_and_max(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "max": torch.max(values).item()}

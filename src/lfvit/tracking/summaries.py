"""Results of a run for its loggers, under the same names for a training and an evaluation.

top1 (percent), gmacs (1e9 multiply-accumulates per image, on average) and exit_fraction (images
answered before the last pass) are those at the model's threshold.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lfvit.measure.costs import pass_macs
from lfvit.measure.schemas import Evaluation


def training_summary(metrics: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """metrics.json with ``top1``, ``gmacs``, ``exit_fraction`` and each pass's top1 and GMACs."""
    macs = pass_macs(model)
    exits = metrics.get("val/exit_fraction", 0.0)
    top1 = [metrics.get("val/top1")]
    if len(macs) > 1:
        top1 = [metrics.get("val/first_top1"), *top1]
    summary = {
        **metrics,
        "top1": metrics.get("val/early_exit_top1", top1[-1]),
        "exit_fraction": exits,
        "gmacs": (exits * macs[0] + (1 - exits) * sum(macs)) / 1e9,
        "images_per_second": metrics.get("train/images_per_second"),
    }
    for i, value in enumerate(top1):
        summary[f"pass_{i + 1}/top1"] = value
        summary[f"pass_{i + 1}/gmacs"] = sum(macs[: i + 1]) / 1e9
    return summary


def evaluation_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The names above, and those of each operating point, such as "max_loss=0.5/top1"."""
    names = ("threshold", "top1", "exit_fraction", "gmacs")
    summary = {key: getattr(evaluation, key) for key in ("images", "skipped_images", "checkpoint")}
    summary |= {name: getattr(evaluation.configured, name) for name in names}
    for point in evaluation.operating_points:
        rule = point.rule.replace(" ", "_")
        summary |= {f"{rule}/{name}": getattr(point, name) for name in names}
    return summary

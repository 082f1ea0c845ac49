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
    """The contents of metrics.json, and the names above."""
    macs, exits = pass_macs(model), metrics.get("val/exit_fraction", 0.0)
    return {
        **metrics,
        "top1": metrics.get("val/early_exit_top1", metrics.get("val/top1")),
        "exit_fraction": exits,
        "gmacs": (sum(macs) - exits * sum(macs[1:])) / 1e9,
    }


def evaluation_summary(evaluation: Evaluation) -> dict[str, Any]:
    """The names above, and those of each operating point, such as "max_loss=0.5/top1"."""
    names = ("threshold", "top1", "exit_fraction", "gmacs")
    summary = {key: getattr(evaluation, key) for key in ("images", "skipped_images", "checkpoint")}
    summary |= {name: getattr(evaluation.configured, name) for name in names}
    for point in evaluation.operating_points:
        rule = point.rule.replace(" ", "_")
        summary |= {f"{rule}/{name}": getattr(point, name) for name in names}
    return summary

"""What a run came to, under the same names whatever it was: a training, an evaluation.

top1: percent, of the answers the model would give at its threshold. gmacs: multiply-accumulates
(1e9) it spends per image there, on average. exit_fraction: share of the images that the first pass
answers. first_* and second_* are each pass on every image; second_gmacs includes the first pass,
without which there is no second. A one-pass model has top1 and gmacs alone.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lfvit.measure.costs import count_macs, expected_gmacs
from lfvit.models.two_pass import TwoPassViT


def training_summary(metrics: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Of a training: metrics.json, and the names above.

    Args:
        metrics: the contents of metrics.json; what was not measured is None in the summary.
        model: for its cost.
    """
    speed = {"images_per_second": metrics.get("train/images_per_second")}
    if not isinstance(model, TwoPassViT):
        return {**metrics, **speed, "top1": metrics.get("val/top1")}
    exits = metrics.get("val/exit_fraction")
    first, second = count_macs(model, "first"), count_macs(model, "second")
    return {
        **metrics,
        **speed,
        "top1": metrics.get("val/early_exit_top1"),
        "first_top1": metrics.get("val/first_top1"),
        "second_top1": metrics.get("val/top1"),
        "exit_fraction": exits,
        "gmacs": None if exits is None else expected_gmacs(first, second, exits),
        "first_gmacs": first / 1e9,
        "second_gmacs": (first + second) / 1e9,
    }


def evaluation_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation: the contents of evaluate.json under the names above.

    What the calibrated threshold reaches on the images it was not chosen on is calibrated_*.
    """
    facts = {key: found[key] for key in ("images", "unreadable_images", "checkpoint")}
    first, second = found["first"], found["second"]
    if second is None:
        return {**facts, **first}
    point = found["operating_point"]
    chosen = found["calibrated"]
    names = ("threshold", "top1", "exit_fraction", "gmacs")
    return {
        **facts,
        **{name: point[name] for name in names},
        **{f"first_{name}": value for name, value in first.items()},
        **{f"second_{name}": value for name, value in second.items()},
        **{f"calibrated_{name}": chosen[name] for name in names},
    }

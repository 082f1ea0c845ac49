"""Every early-exit threshold from one two-pass run: accuracy, exits and cost."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from lfvit.checks import check_range
from lfvit.errors import ConfigError
from lfvit.measure.costs import expected_gmacs


class OperatingPoint(TypedDict):
    """What one threshold does on one set of images."""

    threshold: float  # eta: the first pass answers where its confidence is at least this
    top1: float  # percent
    exit_fraction: float  # share of the images that the first pass answers
    gmacs: float  # expected multiply-accumulates per image, in 1e9


def default_thresholds() -> list[float]:
    """0.00, 0.01, ... 1.00, and 1.01, above any confidence, where no image exits."""
    return [round(i / 100, 2) for i in range(102)]


def sweep_thresholds(
    first_logits: Tensor,
    second_logits: Tensor,
    targets: Tensor,
    macs_first: float,
    macs_second: float,
    thresholds: Sequence[float] | None = None,
) -> list[OperatingPoint]:
    """The operating point at every threshold, from the logits of both passes on the same images.

    An image exits where its confidence (largest softmax probability of the first pass) is at least
    the threshold, exactly as in ``model.infer``. Costs one sort, whatever the number of thresholds.

    Args:
        first_logits, second_logits: (N, C).
        targets: (N,) class indices.
        macs_first, macs_second: multiply-accumulates per image of each pass, see `count_macs`.
        thresholds: default `default_thresholds`.

    Returns:
        One row per threshold, in the order given; top1 in percent.

    Raises:
        ConfigError: no images, or shapes that differ.
    """
    if len(targets) == 0 or not len(first_logits) == len(second_logits) == len(targets):
        raise ConfigError(
            f"logits of {len(first_logits)} and {len(second_logits)} images and {len(targets)} "
            "targets: both passes and the targets must come from the same images, at least one"
        )
    etas = list(default_thresholds() if thresholds is None else thresholds)
    confidence, order = first_logits.float().softmax(dim=1).amax(dim=1).sort(descending=True)
    first_right = (first_logits.argmax(dim=1) == targets)[order].long()
    second_right = (second_logits.argmax(dim=1) == targets)[order].long()
    # right[n]: images answered rightly when the n most confident ones exit
    exits_right = torch.cat([first_right.new_zeros(1), first_right.cumsum(0)])
    stays_right = second_right.sum() - torch.cat(
        [second_right.new_zeros(1), second_right.cumsum(0)]
    )
    right = exits_right + stays_right
    eta = torch.tensor(etas, dtype=confidence.dtype, device=confidence.device)
    exits = torch.searchsorted(-confidence, -eta, right=True)  # how many have confidence >= eta
    n = len(targets)
    return [
        OperatingPoint(
            threshold=float(value),
            top1=100.0 * int(right[count]) / n,
            exit_fraction=count / n,
            gmacs=expected_gmacs(macs_first, macs_second, count / n),
        )
        for value, count in zip(etas, exits.tolist(), strict=True)
    ]


def cheapest_at(curve: Sequence[OperatingPoint], top1: float) -> OperatingPoint | None:
    """The cheapest point of a curve with at least this accuracy (percent), if there is one."""
    good = [point for point in curve if point["top1"] >= top1]
    return min(good, key=lambda point: point["gmacs"], default=None)


def stratified_split(targets: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint parts of the images with the same class mix, as far as whole images allow.

    Args:
        targets: (N,) class indices.
        share: of the images in the first part, in (0, 1).
        seed: of the split.

    Returns:
        Indices (N1,) and (N2,), each ascending.

    Raises:
        ConfigError: share outside (0, 1), or too few images to fill both parts.
    """
    check_range("calibration", share, 0, 1, above=True, below=True)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = shuffled[targets[shuffled].argsort(stable=True)]  # classes in turn, random within
    # walk along the classes and take an image each time another `share` of them has gone by
    steps = ((torch.arange(len(targets)) + 1) * share).floor()
    first = torch.cat([steps[:1], steps.diff()]) > 0
    if not first.any() or first.all():
        raise ConfigError(
            f"calibration={share} of {len(targets)} images leaves one of the two parts empty"
        )
    return by_class[first].sort().values, by_class[~first].sort().values

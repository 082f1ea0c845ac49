"""Every early-exit threshold from one two-pass run: accuracy, exits, cost and risk."""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.measure.costs import expected_gmacs
from lfvit.utils.validation import check_range


class OperatingPoint(TypedDict):
    """What one threshold does on one set of images."""

    threshold: float  # eta: the first pass answers where its confidence is at least this
    top1: float  # percent
    exit_fraction: float  # share of the images that the first pass answers
    gmacs: float  # expected multiply-accumulates per image, in 1e9
    consistency: float  # share of the images that get another answer than from both passes
    gap: float  # top-1 lost against both passes, as a share of the images; negative if gained


class Answers(NamedTuple):
    """What both passes answered on N images: all that the numbers of any threshold depend on."""

    confidence: Tensor  # (N,) float32, the first pass's largest softmax probability
    first: Tensor  # (N,) class the first pass answers
    second: Tensor  # (N,) class the second pass answers
    targets: Tensor  # (N,)

    def take(self, rows: Tensor) -> "Answers":
        """The answers on some of the images."""
        return Answers(*(column[rows] for column in self))


NOBODY_EXITS = 1.01  # above any confidence


def default_thresholds() -> list[float]:
    """0.00, 0.01, ... 1.00, and 1.01, above any confidence, where no image exits."""
    return [round(i / 100, 2) for i in range(102)]


def confidence_of(first_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, C) -> (N,) float32: the largest softmax probability, as ``model.infer`` takes it.

    Args:
        temperature: divides the logits first; it moves confidences, never predictions.
    """
    return (first_logits.float() / temperature).softmax(dim=1).amax(dim=1)


def answers_of(first_logits: Tensor, second_logits: Tensor, targets: Tensor) -> Answers:
    """What matters of the logits (N, C) of both passes on the same images.

    Raises:
        ConfigError: no images, or shapes that differ.
    """
    if len(targets) == 0 or not len(first_logits) == len(second_logits) == len(targets):
        raise ConfigError(
            f"logits of {len(first_logits)} and {len(second_logits)} images and {len(targets)} "
            "targets: both passes and the targets must come from the same images, at least one"
        )
    return Answers(
        confidence_of(first_logits),
        first_logits.argmax(dim=1),
        second_logits.argmax(dim=1),
        targets,
    )


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
        One row per threshold, in the order given, see `OperatingPoint`; top1 in percent.

    Raises:
        ConfigError: no images, or shapes that differ.
    """
    answers = answers_of(first_logits, second_logits, targets)
    return sweep(answers, macs_first, macs_second, thresholds)


def sweep(
    answers: Answers,
    macs_first: float,
    macs_second: float,
    thresholds: Sequence[float] | None = None,
) -> list[OperatingPoint]:
    """`sweep_thresholds` of answers already read from the logits."""
    etas = list(default_thresholds() if thresholds is None else thresholds)
    n = len(answers.targets)
    first_right = answers.first == answers.targets
    second_right = answers.second == answers.targets
    differs = answers.first != answers.second
    flags = torch.stack([torch.ones_like(first_right), first_right, second_right, differs])
    exits, gained, lost, changed = count_exited(answers.confidence, flags, etas)
    right = second_right.sum() + gained - lost
    counts = torch.stack([right, exits, changed, lost - gained], dim=1).tolist()
    return [
        OperatingPoint(
            threshold=float(eta),
            top1=100.0 * hits / n,
            exit_fraction=exited / n,
            gmacs=expected_gmacs(macs_first, macs_second, exited / n),
            consistency=other / n,
            gap=fewer / n,
        )
        for eta, (hits, exited, other, fewer) in zip(etas, counts, strict=True)
    ]


def count_exited(confidence: Tensor, flags: Tensor, thresholds: Sequence[float]) -> Tensor:
    """How many flagged images exit at each threshold, from one sort.

    Args:
        confidence: (N,).
        flags: (..., N) bool.
        thresholds: T of them, in any order.

    Returns:
        (..., T) int64.
    """
    confidence, order = confidence.sort(descending=True)
    total = F.pad(flags[..., order].long().cumsum(-1), (1, 0))
    eta = torch.tensor(list(thresholds), dtype=confidence.dtype, device=confidence.device)
    return total[..., torch.searchsorted(-confidence, -eta, right=True)]


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
    # classes in turn: in random order, or small ones would always lose the same images to rounding
    _, labels = targets.unique(return_inverse=True)
    turn = torch.randperm(int(labels.max()) + 1 if len(labels) else 0, generator=generator)
    by_class = shuffled[turn[labels[shuffled]].argsort(stable=True)]
    # walk along the classes and take an image each time another `share` of them has gone by
    steps = ((torch.arange(len(targets)) + 1) * share).floor()
    first = torch.cat([steps[:1], steps.diff()]) > 0
    if not first.any() or first.all():
        raise ConfigError(
            f"calibration={share} of {len(targets)} images leaves one of the two parts empty"
        )
    return by_class[first].sort().values, by_class[~first].sort().values

"""Thresholds with a guarantee: early exit whose risk is bounded with high probability.

Jazbec et al., "Fast yet Safe: Early-Exiting with Risk Control", NeurIPS 2024, by fixed-sequence
testing as in Angelopoulos et al., "Learn then Test", 2021. The null hypothesis of a threshold eta
is R(eta) > eps. Thresholds are tested from the one above any confidence downward, in steps that
were fixed before any image was seen, and testing stops at the first null hypothesis that cannot be
rejected at level delta: the threshold *before* it is the answer. A wrong answer needs the first
true null hypothesis in the sequence to be rejected, which has probability delta at most, so no
correction for many tests is due.

The p-value is exact for independent images. A split by class fixes the class mix of its parts, with
which failures vary less, not more: at the usual delta the test errs to the safe side (Hoeffding,
"On the distribution of the number of successes in independent trials", 1956). Both are simulated in
tests/measure/test_risk.py.
"""

from collections.abc import Sequence
from itertools import count
from math import ceil, log, log1p
from typing import Any, TypedDict

import torch
from torch import Tensor

from lfvit.measure.thresholds import Answers, count_exited, default_thresholds
from lfvit.utils.validation import check_choice, check_range

LOSSES = ("consistency", "gap")


class Certificate(TypedDict):
    """What fixed-sequence testing found on n calibration images."""

    loss: str
    eps: float  # the risk that must not be exceeded, as a share of the images
    delta: float  # the probability with which it may be exceeded all the same
    n: int
    outcome: str  # "found", or "none: " and why
    threshold: float | None
    risk: float | None  # mean of `losses` on the calibration images at the threshold
    p_value: float | None  # of the null hypothesis that the risk there is above eps
    guarantee: str | None


def control_risk(
    answers: Answers,
    loss: str,
    eps: float,
    delta: float,
    thresholds: Sequence[float] | None = None,
) -> Certificate:
    """The smallest threshold that is certified to keep the risk at or below eps.

    Args:
        answers: of the calibration images.
        loss: see `losses`.
        eps: in (0, 1).
        delta: in (0, 1).
        thresholds: the sequence of tests; default 1.01, 1.00, ... 0.00. It has to be chosen without
            looking at these images.

    Raises:
        ConfigError: an unknown loss, eps or delta outside of (0, 1).
    """
    check_range("risk.eps", eps, 0, 1, above=True, below=True)
    check_range("risk.delta", delta, 0, 1, above=True, below=True)
    etas = list(reversed(default_thresholds()) if thresholds is None else thresholds)
    n = len(answers.targets)
    failures = count_exited(answers.confidence, losses(answers, loss), etas)
    p_values = binomial_cdf(n, eps)[failures]
    last = int((p_values <= delta).long().cumprod(0).sum()) - 1
    found = Certificate(
        loss=loss,
        eps=eps,
        delta=delta,
        n=n,
        outcome="found",
        threshold=None,
        risk=None,
        p_value=None,
        guarantee=None,
    )
    if last < 0:
        found["outcome"] = f"none: needs at least {images_needed(eps, delta)} images"
        return found
    found["threshold"] = float(etas[last])
    found["risk"] = int(failures[last]) / n
    found["p_value"] = p_values[last].item()
    found["guarantee"] = (
        f"with probability at least {1 - delta:g} over the draw of the {n} calibration images, "
        f"{_MEANING[loss].format(percent=100 * eps)}"
    )
    return found


def losses(answers: Answers, loss: str) -> Tensor:
    """(N,) bool: the images that cost a loss of 1 once they exit; before that they cost nothing.

    "consistency": the two passes answer differently.

    "gap": the first pass is wrong and the second right. The gap itself, 1[early wrong] - 1[second
    wrong], is also -1 where only the first pass is right. Its smallest bound that never falls while
    the threshold does is its positive part, which this is: 0 or 1, so the exact binomial test
    applies, and a bound on its risk bounds the gap. Made for the sparse losses of early exit: a
    Hoeffding-Bentkus test of the gap rescaled from [-1, 1] to [0, 1] needs 46,000 images to certify
    eps = 1 % at delta = 0.1 with not one failure, this one 230. What it gives away are the images
    that only the first pass gets right.
    """
    check_choice("risk.losses", loss, LOSSES)
    if loss == "consistency":
        return answers.first != answers.second
    return (answers.first != answers.targets) & (answers.second == answers.targets)


def mean_loss(answers: Answers, loss: str, threshold: float) -> float:
    """The empirical risk of a threshold: the share of all images that exit and fail."""
    failures = count_exited(answers.confidence, losses(answers, loss), [threshold])
    return int(failures[0]) / len(answers.targets)


def binomial_cdf(n: int, p: float) -> Tensor:
    """(n + 1,) float64: P(Bin(n, p) <= k) for k = 0 ... n, with p in (0, 1).

    At k failures among n, it is the exact p-value of "the risk is above p".
    Summed as logarithms, so that small tails of many images keep their digits.
    """
    k = torch.arange(n + 1, dtype=torch.float64)
    size = torch.tensor(n + 1, dtype=torch.float64)
    choose = torch.lgamma(size) - torch.lgamma(k + 1) - torch.lgamma(size - k)
    return (choose + k * log(p) + (n - k) * log1p(-p)).logcumsumexp(0).exp().clamp(max=1)


def images_needed(eps: float, delta: float) -> int:
    """The least number of images that can certify eps at all: with not one failure among them."""
    least = max(1, ceil(log(delta) / log1p(-eps)) - 1)
    return next(n for n in count(least) if binomial_cdf(n, eps)[0] <= delta)


_MEANING: dict[str, Any] = {
    "consistency": "at most {percent:g} % of new images of the same distribution get another "
    "answer than from both passes",
    "gap": "early exit costs at most {percent:g} points of top-1 against both passes on new images "
    "of the same distribution",
}
NOT_GUARANTEED = (
    "each statement holds by itself, not all of them at once; it is about the average image, not "
    "about a class or a single image; it says nothing about images of another distribution, and "
    "it does not hold where the calibration images were trained on or picked the checkpoint"
)

"""Temperature scaling: one number that makes confidences mean what they say.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2. Logits are divided
by T before the softmax; predictions stay as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.measure.thresholds import confidence_of

COLDEST, HOTTEST = 0.01, 100.0
BINS = 15
ROWS = 256  # images at a time


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """The temperature with the smallest negative log-likelihood.

    The likelihood is convex in 1 / T, so its slope has one root; found by Newton's steps, kept
    inside an interval that halves whenever a step leaves it.

    Args:
        logits: (N, C).
        targets: (N,) class indices.

    Returns:
        T, or None where no temperature from 0.01 to 100 is best: every image right with room to
        spare (the colder the better), answers worse than chance (the hotter the better), or logits
        that are all equal.
    """
    logits = logits.float()
    logits = logits - logits.amax(dim=1, keepdim=True)  # keeps every product below finite
    low, high = 1 / HOTTEST, 1 / COLDEST  # of 1 / T
    if not _slope(logits, targets, low)[0] < 0 < _slope(logits, targets, high)[0]:
        return None
    inverse = 1.0
    for _ in range(100):
        slope, curvature = _slope(logits, targets, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else 0.0
        found = step if low < step < high else (low * high) ** 0.5
        if abs(found - inverse) <= 1e-6 * inverse:
            break
        inverse = found
    return 1 / inverse


def _slope(logits: Tensor, targets: Tensor, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood by 1 / T.

    They are the mean of E[logit] - logit of the target, and of the variance of the logit, under the
    scaled softmax. In pieces that fit a processor's cache.
    """
    slope = curvature = 0.0
    for part, target in zip(logits.split(ROWS), targets.split(ROWS), strict=True):
        weights = (part * inverse).exp_()  # at most 1, since the largest logit is 0
        total = weights.sum(dim=1)
        mean = weights.mul_(part).sum(dim=1) / total
        square = weights.mul_(part).sum(dim=1) / total
        own = part.gather(1, target[:, None])[:, 0]
        slope += (mean - own).double().sum().item()
        curvature += (square - mean.square()).double().sum().item()
    return slope / len(logits), curvature / len(logits)


def negative_log_likelihood(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> float:
    """Mean over images, in nats."""
    return F.cross_entropy(logits.float() / temperature, targets).item()


def expected_calibration_error(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, bins: int = BINS
) -> float:
    """Mean distance between confidence and accuracy, over bins of equal width (Guo et al., Eq. 3).

    Args:
        logits: (N, C).
        targets: (N,) class indices.

    Returns:
        In percentage points.
    """
    confidence = confidence_of(logits, temperature).double()
    surplus = confidence - (logits.argmax(dim=1) == targets).double()
    bin_of = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    per_bin = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    return 100 * per_bin.index_add(0, bin_of, surplus).abs().sum().item() / len(targets)

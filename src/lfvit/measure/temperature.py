"""Temperature scaling: logits divided by T before the softmax; predictions stay as they are.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

import numpy as np
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from lfvit.measure.schemas import CalibrationError, Temperature

COLDEST, HOTTEST = 0.01, 100.0
BINS = 15


def scale_temperature(
    logits: Tensor, targets: Tensor, calibration: np.ndarray, rest: np.ndarray
) -> Temperature:
    """Fit a temperature on the calibration images, and measure it on the rest.

    Args:
        logits: (N, C).
        targets: (N,) class indices.
        calibration, rest: row numbers.
    """
    temperature = fit_temperature(logits[calibration], targets[calibration])
    logits, targets = logits[rest], targets[rest]
    scaled = None if temperature is None else logits / temperature
    return Temperature(
        temperature=temperature,
        chosen_on=len(calibration),
        images=len(rest),
        before=calibration_error(logits, targets),
        after=None if scaled is None else calibration_error(scaled, targets),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """The temperature with the smallest negative log-likelihood, which is convex in 1 / T.

    Args:
        logits: (N, C).
        targets: (N,) class indices.

    Returns:
        T, or None where none from 0.01 to 100 is best, as for predictions that are all right, worse
        than chance, or alike.
    """
    logits = logits.float() - logits.float().amax(dim=1, keepdim=True)
    target = logits.gather(1, targets[:, None])[:, 0]

    def slope(inverse: float) -> float:
        """Derivative of the mean negative log-likelihood by 1 / T."""
        expected = (logits * inverse).softmax(dim=1).mul_(logits).sum(dim=1)
        return (expected - target).double().mean().item()

    coldest, hottest = 1 / COLDEST, 1 / HOTTEST
    if not slope(hottest) < 0 < slope(coldest):
        return None
    return 1 / float(brentq(slope, hottest, coldest, rtol=1e-6))


def calibration_error(logits: Tensor, targets: Tensor) -> CalibrationError:
    """Expected calibration error over 15 bins (Guo et al., Eq. 3), and likelihood.

    Args:
        logits: (N, C).
        targets: (N,) class indices.
    """
    probabilities = logits.softmax(dim=1)
    ece = multiclass_calibration_error(probabilities, targets, logits.shape[1], n_bins=BINS)
    nll = F.cross_entropy(logits, targets)
    return CalibrationError(ece=100 * ece.item(), nll=nll.item())

"""Thresholds with a guarantee: early exit whose risk is bounded with high probability.

Jazbec et al., "Fast yet Safe: Early-Exiting with Risk Control", NeurIPS 2024, by fixed-sequence
testing as in Angelopoulos et al., "Learn then Test", 2021. The null hypothesis of a threshold eta
is R(eta) > eps. Thresholds are tested from the one above any confidence downward, in steps fixed
before any image was seen. Testing stops at the first null hypothesis that cannot be rejected at
level delta, and the threshold *before* it is kept. A violation needs the first true null hypothesis
in the sequence to be rejected, which has probability delta at most, so no correction for multiple
tests is due:

    P(R(eta) <= eps) >= 1 - delta over the draw of the calibration images.

The p-value is exact for independent images. A split stratified by class fixes the class mix of its
parts, with which failures vary less, not more: at the usual delta the test errs to the safe side
(Hoeffding, "On the distribution of the number of successes in independent trials", 1956). Both are
simulated in tests/measure/test_risk.py.

Every bound holds by itself, not all of them at once; it is about the average image of the same
distribution, not about a class; and it does not hold where the calibration images were trained on
or picked the checkpoint.
"""

from math import ceil, log, log1p

import numpy as np
import pandas as pd
from scipy.stats import binom

from lfvit.measure.thresholds import default_thresholds, early_exits, predictions_at


def certified_threshold(
    predictions: pd.DataFrame, loss: str, eps: float, delta: float
) -> float | None:
    """The smallest of 1.01, 1.00, ... 0.00 that is certified to keep the risk at or below eps.

    The loss of an image is 0 or 1. "consistency": its prediction is not the last pass's. "gap": it
    is wrong and the last pass is correct. The gap itself, 1[early wrong] - 1[last wrong], is also
    -1 where only the early pass is correct. Its positive part admits the exact binomial test, and a
    bound on its risk bounds the gap; what it gives away are those images. A Hoeffding-Bentkus test
    of the gap rescaled from [-1, 1] to [0, 1] needs 46,000 images to certify eps = 1 % at
    delta = 0.1 without one failure, this one 230.

    Args:
        predictions: of the n calibration images, see `lfvit.measure.thresholds`.
        loss: "consistency" or "gap".
        eps, delta: in (0, 1).

    Returns:
        None where not even the first threshold can be certified, see `images_needed`.
    """
    etas = default_thresholds()[::-1]
    _, predicted = early_exits(predictions, etas)  # (T, N)
    last, target = predictions_at(predictions).to_numpy(), predictions["target"].to_numpy()
    fails = predicted != last
    if loss == "gap":
        fails &= (predicted != target) & (last == target)
    p_values = binom.cdf(fails.sum(axis=1), len(predictions), eps)
    certified = int(np.cumprod(p_values <= delta).sum())
    return etas[certified - 1] if certified else None


def images_needed(eps: float, delta: float) -> int:
    """The fewest images that can certify eps: (1 - eps)^n <= delta, without one failure."""
    return ceil(log(delta) / log1p(-eps))

"""Paired comparison of two models on the same images.

Two models agree on most images. Only the others say which is better, so a paired difference is
known far more precisely than either accuracy. A comparison reports a 95 % interval over images, by
the bootstrap (Efron 1979), where over several seeds an image counts with its mean; the standard
deviation over seeds; and for each seed the p-value of McNemar's exact test (1947).
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from lfvit.errors import DataError

DRAWS = 10_000  # of the bootstrap
LEVEL = 0.95


class Comparison(NamedTuple):
    """One model against another, on the same images, over the seeds of both.

    images: of one seed.
    top1, other_top1: percent, means over seeds.
    difference: points of top-1, the mean of `per_seed`; low, high: its interval over images.
    spread: standard deviation over seeds, None for one seed.
    p_values: per seed, of McNemar's exact test, two-sided.
    """

    images: int
    top1: float
    other_top1: float
    difference: float
    low: float
    high: float
    spread: float | None
    per_seed: list[float]
    p_values: list[float]


def compare(ours: Sequence["pd.Series[bool]"], theirs: Sequence["pd.Series[bool]"]) -> Comparison:
    """Compare two models, seed by seed.

    Args:
        ours: per seed, whether each image is classified correctly, indexed by image, see
            `lfvit.measure.thresholds.correct_at`. If it holds a part of the images, that part is
            compared.
        theirs: the same for the other model and the same seeds.

    Raises:
        DataError: other images, or another number of seeds.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"{len(ours)} seeds of one model and {len(theirs)} of the other")
    pairs = [_aligned(*pair) for pair in zip(ours, theirs, strict=True)]
    differences = [a.astype(int) - b.astype(int) for a, b in pairs]
    per_seed = [100 * each.mean() for each in differences]
    low, high = interval(_over_seeds(differences))
    return Comparison(
        images=len(differences[0]),
        top1=fmean(100 * a.mean() for a, _ in pairs),
        other_top1=fmean(100 * b.mean() for _, b in pairs),
        difference=fmean(per_seed),
        low=100 * low,
        high=100 * high,
        spread=stdev(per_seed) if len(per_seed) > 1 else None,
        per_seed=per_seed,
        p_values=[mcnemar(int((d > 0).sum()), int((d < 0).sum())) for d in differences],
    )


def _aligned(ours: "pd.Series[bool]", theirs: "pd.Series[bool]") -> tuple[Any, Any]:
    """Both in one order, on the images of the smaller set, which is part of the other."""
    if not len(ours) or not len(theirs):
        raise DataError("one of the models has no predictions")
    small, large = sorted((ours, theirs), key=len)
    missing = small.index.difference(large.index)
    if len(missing):
        raise DataError(
            f"the models were evaluated on different images: {missing[0]!r} and "
            f"{len(missing) - 1} others by one of them only"
        )
    return ours.loc[small.index], theirs.loc[small.index]


def _over_seeds(differences: list[Any]) -> list[np.ndarray]:
    """Means over seeds if all have the same images; otherwise one sample of images per seed."""
    names = differences[0].index
    if all(set(each.index) == set(names) for each in differences):
        return [np.mean([each.loc[names] for each in differences], axis=0)]
    return [each.to_numpy(dtype=float) for each in differences]


def interval(samples: Sequence[np.ndarray], draws: int = DRAWS) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of the means of independent samples.

    A sample has few distinct values, so drawing its images anew is one multinomial draw.

    Args:
        samples: each (n,), values of independent images.
        draws: number of resamples, from a fixed seed.
    """
    generator = np.random.default_rng(0)
    means = []
    for sample in samples:
        values, counts = np.unique(sample, return_counts=True)
        drawn = generator.multinomial(len(sample), counts / len(sample), size=draws)
        means.append(drawn @ values / len(sample))
    low, high = np.quantile(np.mean(means, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """The two-sided p-value of McNemar's exact test, a binomial test of 1/2."""
    discordant = only_ours + only_theirs
    return float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0

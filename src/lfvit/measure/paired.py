"""Two models on the same images: differences that do not carry the luck of the draw of the images.

Most images are answered alike by two models. Only those that one of them gets right and the other
wrong say which is better, so a paired difference is known far more exactly than either accuracy.

Three things are told of every comparison, and what each covers:

- the interval over images, by the bootstrap (Efron 1979): what other images of the same kind would
  have given for *these* trained models. Over several seeds, an image counts with its mean.
- the sample standard deviation over seeds of the paired differences: what training again would
  have given on *these* images.
- for each seed, the exact test of McNemar (1947): how probable a split at least as uneven as the
  one found would be, if both models were right equally often.
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

    images: of one seed. top1, other_top1: percent, means over seeds. difference: in points, the
    mean of `per_seed`; low, high: its 95 % interval over images. spread: over seeds, None for one.
    only_ours, only_theirs: of each seed, images that one gets right and the other does not.
    p_values: of each seed, of McNemar's exact test, two-sided.
    """

    images: int
    top1: float
    other_top1: float
    difference: float
    low: float
    high: float
    spread: float | None
    per_seed: list[float]
    only_ours: list[int]
    only_theirs: list[int]
    p_values: list[float]


def compare(ours: Sequence["pd.Series[bool]"], theirs: Sequence["pd.Series[bool]"]) -> Comparison:
    """Compare two models, seed by seed.

    Args:
        ours: for every seed whether each image is answered right, by image, see
            `lfvit.measure.thresholds.correct_at`. Of a
            model reported on a part of the images, that part; then that part is compared.
        theirs: the same of the other model, for the same seeds.

    Raises:
        DataError: other images, or another number of seeds.
    """
    if not ours or len(ours) != len(theirs):
        raise DataError(f"{len(ours)} seeds of one model and {len(theirs)} of the other")
    pairs = [_aligned(*pair) for pair in zip(ours, theirs, strict=True)]
    differences = [a.astype(int) - b.astype(int) for a, b in pairs]
    per_seed = [100 * each.mean() for each in differences]
    counts = [(int((each > 0).sum()), int((each < 0).sum())) for each in differences]
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
        only_ours=[mine for mine, _ in counts],
        only_theirs=[other for _, other in counts],
        p_values=[mcnemar(*count) for count in counts],
    )


def _aligned(ours: "pd.Series[bool]", theirs: "pd.Series[bool]") -> tuple[Any, Any]:
    """Both in one order, on the images of the smaller set, which has to lie in the other."""
    if not len(ours) or not len(theirs):
        raise DataError("one of the models answered no image")
    small, large = (ours, theirs) if len(ours) <= len(theirs) else (theirs, ours)
    missing = small.index.difference(large.index)
    if len(missing):
        raise DataError(
            f"models were evaluated on different images: {missing[0]!r} and {len(missing) - 1} "
            "others were seen by one of them alone"
        )
    return ours.loc[small.index], theirs.loc[small.index]


def _over_seeds(differences: list[Any]) -> list[np.ndarray]:
    """Means over seeds where all saw the same images; else one sample of images per seed."""
    if all(set(each.index) == set(differences[0].index) for each in differences):
        table = pd.concat([each.loc[differences[0].index] for each in differences], axis=1)
        return [table.mean(axis=1).to_numpy()]
    return [each.to_numpy(dtype=float) for each in differences]


def interval(samples: Sequence[np.ndarray], draws: int = DRAWS) -> tuple[float, float]:
    """The bootstrap's percentile interval of the mean of the means of independent samples.

    A sample takes few different values, so how often each is drawn is one multinomial draw.

    Args:
        samples: each (n,), values of independent images.
        draws: how often all images are drawn anew, always the same ones.
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

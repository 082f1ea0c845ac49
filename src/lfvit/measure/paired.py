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

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lfvit.errors import DataError
from lfvit.measure.predictions import answers_in, right_at
from lfvit.measure.thresholds import OperatingPoint, cheapest_at, stratified_split, sweep

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
        ours: for every seed whether each image is answered right, by image, see `right_at`. Of a
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
        p_values=[mcnemar(*each) for each in counts],
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
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    ways = [1]  # n over 0, n over 1, ...
    for k in range(fewer):
        ways.append(ways[-1] * (n - k) // (k + 1))
    return min(1.0, 2 * sum(ways) / 2**n)


def reported_part(predictions: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """The rows on which thresholds are reported, see `choose`."""
    return _parts(predictions, share, seed)[1]


def _parts(predictions: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    targets = torch.from_numpy(np.array(predictions["target"]))
    chosen, rest = stratified_split(targets, share, seed)
    return predictions.iloc[chosen.numpy()], predictions.iloc[rest.numpy()]


class Chosen(NamedTuple):
    """A threshold chosen on one part of the images, on the other.

    met: whether the calibration part had a threshold that does what was asked for.
    """

    right: "pd.Series[bool]"
    threshold: float
    gmacs: float
    exit_fraction: float
    met: bool


Rule = Callable[[list[OperatingPoint], "pd.DataFrame"], tuple[OperatingPoint, bool]]
"""The curve of the calibration part, and its rows -> the point to use, and `Chosen.met`."""


def choose(
    predictions: pd.DataFrame,
    macs: tuple[float, float],
    rule: Rule,
    share: float = 0.5,
    seed: int = 0,
) -> Chosen:
    """Choose a threshold on one part of the images and report it on the other.

    Args:
        predictions: of a two-pass model, see `read_predictions`.
        macs: of each pass.
        rule: what to choose.
        share, seed: of the calibration part, as evaluate.py has them.
    """
    calibration, rest = _parts(predictions, share, seed)
    point, met = rule(sweep(answers_in(calibration), *macs), calibration)
    eta = point["threshold"]
    (reported,) = sweep(answers_in(rest), *macs, [eta])
    return Chosen(right_at(rest, eta), eta, reported["gmacs"], reported["exit_fraction"], met)


def as_accurate_as(other: "pd.Series[bool]") -> Rule:
    """The cheapest threshold with at least another model's accuracy on the calibration part; where
    there is none, the most accurate one."""

    def rule(curve: list[OperatingPoint], calibration: pd.DataFrame) -> tuple[OperatingPoint, bool]:
        wanted = 100 * float(other.loc[calibration.index].mean())
        # both are counts of the same images: a hair less is the same count
        found = cheapest_at(curve, wanted - 1e-9)
        best = max(curve, key=lambda point: (point["top1"], -point["gmacs"]))
        return (best, False) if found is None else (found, True)

    return rule


def within(gmacs: float) -> Rule:
    """The most accurate threshold of at most so many GMACs per image on the calibration part; where
    there is none, the cheapest one."""

    def rule(curve: list[OperatingPoint], calibration: pd.DataFrame) -> tuple[OperatingPoint, bool]:
        good = [point for point in curve if point["gmacs"] <= gmacs]
        if not good:
            return min(curve, key=lambda point: point["gmacs"]), False
        return max(good, key=lambda point: (point["top1"], -point["gmacs"])), True

    return rule

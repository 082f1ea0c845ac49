"""Paired comparisons against slow counting."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from lfvit.errors import DataError
from lfvit.measure.paired import compare, interval, mcnemar


def answers(bits, names="abcdefghijklmnopqrstuvwxyz"):
    return pd.Series([bit == "1" for bit in bits], index=list(names[: len(bits)]))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (3, 3), (1, 6), (9, 2), (0, 8)])
def test_mcnemar_counts_every_way_the_images_could_have_split(ours, theirs):
    n = ours + theirs
    uneven = [abs(2 * sum(way) - n) >= abs(ours - theirs) for way in product((0, 1), repeat=n)]
    assert mcnemar(ours, theirs) == pytest.approx(sum(uneven) / len(uneven))
    assert 0 < mcnemar(1000, 2000) < 1e-70


def test_a_comparison_counts_images():
    ours = [answers("110110"), answers("111100")]
    theirs = [answers("100111"), answers("110000")]
    found = compare(ours, theirs)
    assert found.per_seed == pytest.approx([0, 100 / 3])
    assert found.difference == pytest.approx(100 / 6)
    assert found.spread == pytest.approx(np.std([0, 100 / 3], ddof=1))
    assert (found.top1, found.other_top1) == pytest.approx((400 / 6, 300 / 6))
    assert found.p_values == [1.0, 0.5]
    assert found.low <= found.difference <= found.high


def test_images_are_matched_by_name_and_parts_are_compared():
    ours = answers("10", names="ca")
    theirs = answers("011", names="abc")
    found = compare([ours], [theirs])
    assert (found.images, found.difference) == (2, 0)
    with pytest.raises(DataError, match="'z' and 0 others by one of them"):
        compare([answers("10", names="az")], [theirs])
    with pytest.raises(DataError, match="1 seeds of one model and 2"):
        compare([ours], [theirs, theirs])


def test_the_interval_is_that_of_drawing_images_anew():
    rng = np.random.default_rng(1)
    sample = rng.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], 200, p=[0.05, 0.1, 0.6, 0.15, 0.1])
    slow = [rng.choice(sample, 200).mean() for _ in range(20_000)]
    assert interval([sample]) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.004)
    other = rng.choice([-1.0, 0.0, 1.0], 100)
    slow = [(rng.choice(sample, 200).mean() + rng.choice(other, 100).mean()) / 2 for _ in slow]
    both = interval([sample, other])
    assert both == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.006)
    assert interval([np.zeros(5)]) == (0, 0)


def test_seeds_with_images_of_their_own_are_independent_samples():
    bits = ("1010110111", "0110100101")
    same = compare([answers(b) for b in bits], [answers("0101110110")] * 2)
    names = ("abcdefghij", "klmnopqrst")
    ours = [answers(b, n) for b, n in zip(bits, names, strict=True)]
    apart = compare(ours, [answers("0101110110", n) for n in names])
    assert apart.difference == same.difference
    assert (apart.low, apart.high) != (same.low, same.high)

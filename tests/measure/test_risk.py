"""Risk control against counting by hand, exact fractions, and populations of known risk."""

from fractions import Fraction
from math import comb, sqrt

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_predictions import predicted

from lfvit.measure.risk import certified_threshold, images_needed
from lfvit.measure.thresholds import (
    correct_at,
    default_thresholds,
    predictions_at,
    stratified_split,
    sweep,
)

LOSSES = ("consistency", "gap")
DOWNWARD = list(reversed(default_thresholds()))


def table(confidence, first, second, target):
    """Two passes, from tensors of confidences and classes."""
    columns = {
        "target": target,
        "prediction_1": first,
        "confidence_1": confidence,
        "prediction_2": second,
        "confidence_2": torch.ones(len(target)),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def exact_cdf(k, n, p):
    p = Fraction(p)  # the float itself, without rounding
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@given(
    st.integers(0, 1000),
    st.integers(1, 60),
    st.sampled_from(LOSSES),
    st.sampled_from([0.02, 0.1, 0.3, 0.7]),
    st.sampled_from([0.05, 0.1, 0.5]),
)
@settings(max_examples=25, deadline=None)
def test_testing_in_sequence_by_hand(seed, n, loss, eps, delta):
    rows = predicted(seed, n)
    last = predictions_at(rows)
    expected = None
    for eta in DOWNWARD:
        early = predictions_at(rows, eta)
        failed = early != last
        if loss == "gap":
            failed = (early != rows["target"]) & (last == rows["target"])
        if float(exact_cdf(int(failed.sum()), n, eps)) > delta:
            break
        expected = eta
    found = certified_threshold(rows, loss, eps, delta)
    assert found == expected
    assert (found is None) == (images_needed(eps, delta) > n)
    if found is not None:
        risk = (predictions_at(rows, found) != last).mean()
        lost = correct_at(rows).mean() - correct_at(rows, found).mean()
        assert (risk if loss == "consistency" else lost) <= eps
        (point,) = sweep(rows, [1, 1], [found]).to_dict("records")
        assert point["consistency"] == pytest.approx(risk)


def test_how_many_images_it_takes():
    assert images_needed(0.01, 0.1) == 230
    assert images_needed(0.5, 0.5) == 1
    for eps, delta in ((0.01, 0.1), (0.02, 0.05), (0.9, 0.1), (0.3, 0.001)):
        n = images_needed(eps, delta)
        assert (1 - Fraction(eps)) ** n <= Fraction(delta) * (1 + Fraction(1, 10**12))
        assert n == 1 or (1 - Fraction(eps)) ** (n - 1) > Fraction(delta)


class Population:
    """A few kinds of images, each with a confidence and what becomes of it: (kinds,) each.

    weights: share of the kind. apart: probability that the passes differ, in which case the second
    is right with probability rescued and the first otherwise.
    """

    def __init__(self, confidence, weights, apart, rescued):
        self.confidence, self.apart, self.rescued = map(torch.tensor, (confidence, apart, rescued))
        self.weights = torch.tensor(weights)

    def draw(self, n, generator):
        kind = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        differ = torch.rand(n, generator=generator) < self.apart[kind]
        saved = torch.rand(n, generator=generator) < self.rescued[kind]
        first = torch.zeros(n, dtype=torch.long)
        second = differ.long()
        # classes 0 and 1: the target is what the right pass answers
        target = torch.where(differ & saved, second, first)
        return table(self.confidence[kind], first, second, target), kind

    def risk(self, loss, eta):
        factor = {"consistency": 1.0, "gap": 2 * self.rescued - 1}[loss]
        out = self.confidence >= eta
        return (self.weights * self.apart * factor)[out].sum().item()


STEEP = Population([0.95, 0.85, 0.5], [0.5, 0.3, 0.2], [0.0, 0.1675, 1.0], [1.0, 1.0, 1.0])
SLOW = Population(
    [0.975 - 0.05 * i for i in range(15)],
    [1 / 15] * 15,
    [0.01 * (i + 1) for i in range(15)],
    [1.0, 0.9, 0.8] * 5,
)
POPULATIONS = {"steep": STEEP, "slow": SLOW}  # steep: the risk goes from 0 to 5.025 % in one step
TRIALS, N, EPS, DELTA = 400, 209, 0.05, 0.1


def violations(population, loss, draw):
    """How often the true risk at the answer is above eps, and at the threshold one test further."""
    generator = torch.Generator().manual_seed(0)
    kept = failing = 0
    for _ in range(TRIALS):
        eta = certified_threshold(draw(population, generator), loss, EPS, DELTA)
        further = DOWNWARD[min(DOWNWARD.index(eta) + 1, len(DOWNWARD) - 1)]
        kept += population.risk(loss, eta) > EPS
        failing += population.risk(loss, further) > EPS
    return kept / TRIALS, failing / TRIALS


def independent(population, generator):
    return population.draw(N, generator)[0]


def half_of_a_split(population, generator):
    """The calibration part of a split by class, where classes are the kinds of images."""
    drawn, kind = population.draw(2 * N, generator)
    part, _ = stratified_split(kind, 0.5, int(drawn["prediction_2"].sum()))
    return drawn.iloc[part]


@pytest.mark.parametrize("draw", [independent, half_of_a_split])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_guarantee_holds(name, loss, draw):
    """The true risk exceeds eps in at most a share delta of the draws of calibration images.

    The threshold at which the tests fail, which the published code of "Fast yet Safe" answers with,
    exceeds it more often than it may, where the risk rises steeply practically always.
    """
    kept, failing = violations(POPULATIONS[name], loss, draw)
    print(f"{name}, {loss}, {draw.__name__}: {kept:.3f}, one further {failing:.3f}")
    error = sqrt(DELTA * (1 - DELTA) / TRIALS)
    assert kept <= DELTA + 3 * error
    if name == "steep":
        assert failing > 0.85
        if draw is independent:
            assert kept > 0.06  # the bound is put to the test
    else:
        assert failing >= kept

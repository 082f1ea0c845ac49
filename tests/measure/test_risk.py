"""Risk control against counting by hand, exact fractions, and populations of known risk."""

from fractions import Fraction
from math import comb, sqrt

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_predictions import predicted

from lfvit.measure.operating_points import certified_threshold, images_needed
from lfvit.measure.thresholds import (
    correct_at,
    default_thresholds,
    predictions_at,
    stratified_split,
    sweep,
)

LOSSES = ("consistency", "gap")
DOWNWARD = list(reversed(default_thresholds()))


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


CONFIDENCE = torch.tensor([0.95, 0.85, 0.5])  # of three kinds of images,
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])  # their shares,
DIFFER = torch.tensor([0.0, 0.1675, 1.0])  # and how often the second pass corrects the first
TRIALS, N, EPS, DELTA = 200, 209, 0.05, 0.1


def risk(eta):
    """The true risk, for either loss: 0, 5.025 % or 25 %."""
    return (WEIGHTS * DIFFER)[eta <= CONFIDENCE].sum().item()


def draw(n, generator):
    """Predictions for n images, and the kind of each."""
    kind = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    target = (torch.rand(n, generator=generator) < DIFFER[kind]).long()
    columns = {
        "target": target,
        "prediction_1": torch.zeros(n, dtype=torch.long),
        "confidence_1": CONFIDENCE[kind],
        "prediction_2": target,
        "confidence_2": torch.ones(n),
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()}), kind


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_guarantee_holds(loss, stratified):
    """The true risk exceeds eps in at most a share delta of the draws of calibration images.

    The threshold at which the tests fail, which the published code of "Fast yet Safe" answers with,
    exceeds it practically always where the risk rises steeply.
    """
    generator = torch.Generator().manual_seed(0)
    kept = failing = 0
    for _ in range(TRIALS):
        table, kind = draw(2 * N if stratified else N, generator)
        if stratified:
            table = table.iloc[stratified_split(kind, 0.5, int(table["target"].sum()))[0]]
        eta = certified_threshold(table, loss, EPS, DELTA)
        kept += risk(eta) > EPS
        failing += risk(DOWNWARD[min(DOWNWARD.index(eta) + 1, len(DOWNWARD) - 1)]) > EPS
    assert kept / TRIALS <= DELTA + 3 * sqrt(DELTA * (1 - DELTA) / TRIALS)
    assert failing / TRIALS > 0.85
    if not stratified:
        assert kept / TRIALS > 0.06  # the bound is put to the test

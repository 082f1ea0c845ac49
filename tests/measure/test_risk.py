"""Risk control against counting by hand, exact fractions, and populations of known risk."""

from fractions import Fraction
from math import comb, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfvit.errors import ConfigError
from lfvit.measure.risk import (
    LOSSES,
    binomial_cdf,
    control_risk,
    images_needed,
    mean_loss,
)
from lfvit.measure.thresholds import (
    Answers,
    answers_of,
    default_thresholds,
    stratified_split,
    sweep,
)

DOWNWARD = list(reversed(default_thresholds()))


def answers(seed, n, classes=4):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    right = torch.nn.functional.one_hot(targets, classes)
    first = 2 * torch.randn(n, classes, generator=generator) + 2 * right
    return answers_of(first, first + torch.randn(n, classes, generator=generator) + right, targets)


def exact_cdf(k, n, p):
    p = Fraction(p)  # the float itself, without rounding
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def loss_by_hand(a, i, loss, eta):
    if not bool(a.confidence[i] >= eta):
        return 0
    first, second, target = int(a.first[i]), int(a.second[i]), int(a.targets[i])
    if loss == "consistency":
        return int(first != second)
    return int(first != target) - int(second != target)


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (7, 0.01), (60, 0.5), (120, 0.05), (40, 0.999)])
def test_binomial_cdf_is_exact(n, p):
    found = binomial_cdf(n, p)
    assert found.dtype == torch.float64
    for k in range(0, n + 1, 1 + n // 20):
        assert found[k].item() == pytest.approx(float(exact_cdf(k, n, p)), rel=1e-10)


def test_binomial_cdf_of_many_images():
    """Its tail against the sum of neighbouring terms by their exact ratio."""
    n, p = 50_000, 0.01
    found = binomial_cdf(n, p)
    assert bool((found.diff() >= 0).all())
    assert found[0].item() == pytest.approx((1 - p) ** n, rel=1e-8)
    assert found[-1].item() == pytest.approx(1, abs=1e-9)
    pmf = found.diff()[400:600]
    k = torch.arange(402, 601, dtype=torch.float64)
    torch.testing.assert_close(pmf[1:] / pmf[:-1], (n - k + 1) / k * p / (1 - p))


@given(
    st.integers(0, 1000),
    st.integers(1, 60),
    st.sampled_from(LOSSES),
    st.sampled_from([0.02, 0.1, 0.3, 0.7]),
    st.sampled_from([0.05, 0.1, 0.5]),
)
@settings(max_examples=25, deadline=None)
def test_testing_in_sequence_by_hand(seed, n, loss, eps, delta):
    a = answers(seed, n)
    expected = None
    for eta in DOWNWARD:
        failures = sum(max(0, loss_by_hand(a, i, loss, eta)) for i in range(n))
        p_value = float(exact_cdf(failures, n, eps))
        if p_value > delta:
            break
        expected = eta, failures / n, p_value
    found = control_risk(a, loss, eps, delta)
    if expected is None:
        assert found["threshold"] is found["guarantee"] is None
        assert found["outcome"] == f"none: needs at least {images_needed(eps, delta)} images"
        assert images_needed(eps, delta) > n
    else:
        assert found["outcome"] == "found"
        values = found["threshold"], found["risk"], found["p_value"]
        assert values == pytest.approx(expected)
        assert found["risk"] == mean_loss(a, loss, found["threshold"])
        by_hand = [loss_by_hand(a, i, "gap", found["threshold"]) for i in range(n)]
        (point,) = sweep(a, 1, 1, [found["threshold"]])
        assert point["gap"] == pytest.approx(sum(by_hand) / n)
        assert point["gap"] <= mean_loss(a, "gap", found["threshold"])


def test_how_many_images_it_takes():
    assert images_needed(0.01, 0.1) == 230
    assert images_needed(0.5, 0.5) == 1
    for eps, delta in ((0.01, 0.1), (0.02, 0.05), (0.9, 0.1), (0.3, 0.001)):
        n = images_needed(eps, delta)
        assert (1 - Fraction(eps)) ** n <= Fraction(delta) * (1 + Fraction(1, 10**12))
        assert n == 1 or (1 - Fraction(eps)) ** (n - 1) > Fraction(delta)


@pytest.mark.parametrize(
    ("n", "outcome"), [(229, "none: needs at least 230 images"), (230, "found")]
)
@pytest.mark.parametrize("loss", LOSSES)
def test_too_few_images_are_an_outcome(n, outcome, loss):
    zeros = torch.zeros(n, dtype=torch.long)
    found = control_risk(Answers(torch.rand(n), zeros, zeros, zeros), loss, 0.01, 0.1)
    assert found["outcome"] == outcome
    assert found["threshold"] == (0.0 if n == 230 else None)  # not one failure: everything exits


def test_ties_in_confidence_count_together():
    """One threshold passes a hundred equal images: all of their failures are counted there."""
    n = 400
    first = torch.zeros(n, dtype=torch.long)
    second = (torch.arange(n) < 50).long()
    a = Answers(torch.full((n,), 0.75), first, second, second)
    found = control_risk(a, "consistency", 0.05, 0.1)
    assert found["threshold"] == 0.76
    assert found["risk"] == 0
    assert control_risk(a, "consistency", 0.2, 0.1)["threshold"] == 0


@pytest.mark.parametrize("value", [0, 1, -0.1, 2, float("nan"), "small", True, None])
def test_bounds_that_make_no_sense(value):
    a = answers(0, 5)
    with pytest.raises(ConfigError, match=r"risk\.eps="):
        control_risk(a, "gap", value, 0.1)
    with pytest.raises(ConfigError, match=r"risk\.delta="):
        control_risk(a, "gap", 0.1, value)
    with pytest.raises(ConfigError, match=r"risk\.losses='top1' is unknown; valid: consistency"):
        control_risk(a, "top1", 0.1, 0.1)


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
        return Answers(self.confidence[kind], first, second, target), kind

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
TRIALS, N, EPS, DELTA = 2000, 209, 0.05, 0.1


def violations(population, loss, draw):
    """How often the true risk at the answer is above eps, and at the threshold one test further."""
    generator = torch.Generator().manual_seed(0)
    kept = failing = 0
    for _ in range(TRIALS):
        eta = control_risk(draw(population, generator), loss, EPS, DELTA)["threshold"]
        further = DOWNWARD[min(DOWNWARD.index(eta) + 1, len(DOWNWARD) - 1)]
        kept += population.risk(loss, eta) > EPS
        failing += population.risk(loss, further) > EPS
    return kept / TRIALS, failing / TRIALS


def independent(population, generator):
    return population.draw(N, generator)[0]


def half_of_a_split(population, generator):
    """The calibration part of a split by class, where classes are the kinds of images."""
    drawn, kind = population.draw(2 * N, generator)
    return drawn.take(stratified_split(kind, 0.5, int(drawn.second.sum()))[0])


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

"""Temperature scaling against known temperatures, a search by hand, and bins counted by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfvit.measure.temperature import calibration_error, fit_temperature


def calibrated_logits(seed, n=20_000, classes=5):
    """Logits that mean what they say: targets are drawn from their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, targets


@pytest.mark.parametrize("temperature", [0.05, 1.0, 40.0])
def test_a_known_temperature_is_found(temperature):
    logits, targets = calibrated_logits(0)
    found = fit_temperature(temperature * logits, targets)
    assert found == pytest.approx(temperature, rel=0.03)
    assert calibration_error(temperature * logits / found, targets).ece < 1.5


@given(st.integers(0, 500), st.integers(1, 50), st.floats(0.1, 20))
@settings(max_examples=40, deadline=None)
def test_no_other_temperature_is_better(seed, n, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, 4, generator=generator)
    targets = torch.randint(4, (n,), generator=generator)
    found = fit_temperature(logits, targets)
    grid = torch.logspace(-2, 2, 81).tolist()
    nll = [calibration_error(logits.double() / t, targets).nll for t in grid]
    if found is None:
        assert min(nll) == pytest.approx(min(nll[0], nll[-1]), abs=1e-4)
    else:
        assert 0.01 < found < 100
        best = calibration_error(logits.double() / found, targets).nll
        assert best <= min(nll) * (1 + 1e-5) + 1e-6


def test_few_or_extreme_logits():
    for logits, target in (([[9.0, 0.0]], 0), ([[9.0, 0.0]], 1), ([[2.0, 2.0]], 0)):
        assert fit_temperature(torch.tensor(logits), torch.tensor([target])) is None
    logits = torch.tensor([[1e6, 0.0, -1e6], [0.0, 1e6, 0.0], [3e5, 0.0, 1e6]])
    found = fit_temperature(logits, torch.tensor([0, 1, 0]))
    assert found is None or 0.01 < found < 100


def test_calibration_error_by_hand():
    logits, targets = calibrated_logits(1, n=300)
    logits /= 4
    confidence = logits.softmax(1).amax(1)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(300) if b / 15 < confidence[i].item() <= (b + 1) / 15]
        if inside:
            sure = sum(confidence[i].item() for i in inside) / len(inside)
            right = sum(int(logits[i].argmax() == targets[i]) for i in inside) / len(inside)
            expected += len(inside) / 300 * abs(sure - right)
    found = calibration_error(logits, targets).ece
    assert found == pytest.approx(100 * expected, abs=1e-4)
    certain = torch.tensor([[200.0, 0.0], [200.0, 0.0]])
    assert calibration_error(certain, torch.tensor([1, 1])).ece == pytest.approx(100)

"""Learning rate and phases."""

import pytest

from lfvit.errors import ConfigError
from lfvit.training.schedule import Schedule


def test_published_recipe():
    recipe = Schedule()
    peak = recipe.peak_lr(1024)
    assert peak == pytest.approx(1e-3)
    assert recipe.lr_at(0, peak) == pytest.approx(1e-6)
    assert recipe.lr_at(2.5, peak) == pytest.approx((1e-6 + 1e-3) / 2)
    assert recipe.lr_at(5, peak) == pytest.approx(peak)
    assert recipe.lr_at(177.5, peak) == pytest.approx((1e-5 + peak) / 2)
    assert recipe.lr_at(350, peak) == pytest.approx(1e-5)
    assert recipe.lr_at(999, peak) == pytest.approx(1e-5)
    assert recipe.selection_epoch == 230


@pytest.mark.parametrize(
    ("start", "epoch"), [(0, 0), (3, 3), (0.5, 5), (0.66, 7), (10, 10), (1, 1), (1.0, 1)]
)
def test_phase_two_starts_at_an_epoch_or_a_fraction(start, epoch):
    assert Schedule(epochs=10, selection_start=start, warmup_epochs=1).selection_epoch == epoch


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "schedule.epochs=0"),
        ({"epochs": 2.5}, "schedule.epochs=2.5 must be a whole number"),
        ({"selection_start": 230.5}, "schedule.selection_start=230.5 must be a whole number"),
        ({"selection_start": 400}, "schedule.selection_start=400 is out of range"),
        ({"warmup_epochs": -1}, "schedule.warmup_epochs=-1"),
        ({"lr": 0}, "schedule.lr=0"),
        ({"lr": "high"}, "schedule.lr='high'"),
        ({"ema_decay": 1.0}, "schedule.ema_decay=1.0"),
        ({"loss": "mse"}, "schedule.loss='mse' is unknown; valid: ce_kl, ce_ce"),
        ({"leaning_rate": 1}, "schedule has no setting 'leaning_rate'; valid: epochs"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.of(setting)

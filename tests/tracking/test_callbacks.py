"""Throughput of training alone, and settings out of range."""

from types import SimpleNamespace

import pytest
import torch

from lfvit.errors import ConfigError
from lfvit.tracking import callbacks
from lfvit.tracking.callbacks import LogPredictions, Throughput


def test_throughput_is_of_training_alone(monkeypatch):
    # epoch, batch, end of validation, batch
    clock = iter([100.0, 103.0, 107.0, 108.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    logged = {}
    trainer = SimpleNamespace(world_size=2)
    module = SimpleNamespace(log=lambda name, value, **options: logged.update({name: value}))
    batch = SimpleNamespace(images=torch.zeros(6, 3, 1, 1))
    throughput = Throughput()
    throughput.on_train_epoch_start(trainer, module)
    throughput.on_train_batch_end(trainer, module, None, batch, 0)
    throughput.on_validation_end(trainer, module)
    throughput.on_train_batch_end(trainer, module, None, batch, 1)
    throughput.on_train_epoch_end(trainer, module)
    assert logged == {"train/images_per_second": 2 * 2 * 6 / 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": -1}, "callbacks.predictions.images=-1 must be a whole number, 0 or more"),
        ({"every_n_epochs": 0}, "callbacks.predictions.every_n_epochs=0 must be a whole number, 1"),
    ],
)
def test_numbers_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        LogPredictions(**settings)

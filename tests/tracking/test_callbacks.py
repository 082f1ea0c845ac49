"""What is measured beside training, and that nonsense is refused."""

from types import SimpleNamespace

import pytest
import torch

from lfvit.errors import ConfigError
from lfvit.tracking import callbacks
from lfvit.tracking.callbacks import LogPredictions, Throughput


def test_throughput_is_of_training_alone(monkeypatch):
    clock = iter([100.0, 103.0, 107.0, 108.0])  # epoch, validation from 103 to 107, end of epoch
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    logged = {}
    trainer = SimpleNamespace(world_size=2)
    module = SimpleNamespace(log=lambda name, value, **options: logged.update({name: value}))
    batch = SimpleNamespace(images=torch.zeros(6, 3, 1, 1))
    throughput = Throughput()
    throughput.on_train_epoch_start(trainer, module)
    for index in range(2):
        throughput.on_train_batch_end(trainer, module, None, batch, index)
    throughput.on_validation_start(trainer, module)
    throughput.on_validation_end(trainer, module)
    throughput.on_train_epoch_end(trainer, module)
    assert logged == {"train/images_per_second": 2 * 2 * 6 / 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": -1}, "callbacks.predictions.images=-1 must be a whole number, 0 or more"),
        ({"every_n_epochs": 0}, "callbacks.predictions.every_n_epochs=0 must be a whole number, 1"),
    ],
)
def test_numbers_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        LogPredictions(**settings)

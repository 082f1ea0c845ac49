"""Throughput of training alone."""

from types import SimpleNamespace

import torch

from lfvit.tracking import callbacks
from lfvit.tracking.callbacks import Throughput


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

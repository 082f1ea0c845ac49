"""A loader process that dies: the error names the image it was making."""

import os
import signal

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lfvit.data import ImageDataModule, loader
from lfvit.errors import DataError
from lfvit.utils.error_messages import error_message

FATAL = 5


class Deadly:
    """Images of which one kills the worker that draws it."""

    classes = ("a", "b")
    targets = tuple(i % 2 for i in range(12))

    def __init__(self, end):
        self.end = end

    def __len__(self):
        return len(self.targets)

    def name(self, index):
        return f"/photos/{index:02d}.jpg"

    def draw(self, index):
        worker = torch.utils.data.get_worker_info()
        if index == FATAL and worker is not None and self.end is not None:
            self.end()
        if index == FATAL and self.end is None:
            raise ZeroDivisionError("in a decoder")
        return torch.zeros(40, 40, 3, dtype=torch.uint8).numpy(), self.targets[index], None


class DeadlyImages(ImageDataModule):
    def __init__(self, end, **settings):
        super().__init__(image_size=32, batch_size=2, **settings)
        self.end = end

    def open(self):
        return Deadly(self.end), Deadly(self.end)

    def train_transform(self):
        return lambda image: torch.zeros(3, 32, 32, dtype=torch.uint8)

    eval_transform = cached_crops_transform = train_transform

    def cached_crops(self):
        return None


class Sleepy(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    predict_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    os._exit(3)


def trainer():
    return Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


@pytest.mark.parametrize("end", [killed, crashed])
@pytest.mark.parametrize("stage", ["fit", "predict", "cache"])
def test_the_image_that_killed_a_worker_is_named(end, stage):
    data = DeadlyImages(end, num_workers=2, cache="device" if stage == "cache" else None)
    run = trainer().predict if stage == "predict" else trainer().fit
    with pytest.raises(RuntimeError, match=r"while it made /photos/05\.jpg \(") as caught:
        run(Sleepy(), datamodule=data)
    message = error_message(caught.value)  # what the command line prints, without a traceback
    assert message == str(caught.value)
    for advice in ("killed, memory", "data.num_workers=0", "data.on_error=skip only"):
        assert advice in message


@pytest.mark.parametrize("end", [killed, crashed])
@pytest.mark.parametrize("said", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_worker_that_dies_as_it_hands_over_a_batch(end, said, monkeypatch):
    """Then the main process fails to read it, before PyTorch looks after its workers."""
    wait_for_data = _MultiProcessingDataLoaderIter._try_get_data

    def broken_off(self, *args, **kwargs):
        try:
            return wait_for_data(self, *args, **kwargs)
        except RuntimeError:
            raise said from None

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken_off)
    with pytest.raises(RuntimeError, match=r"while it made /photos/05\.jpg \("):
        trainer().predict(Sleepy(), datamodule=DeadlyImages(end, num_workers=2))


def test_a_broken_connection_of_something_else_keeps_its_error(monkeypatch):
    def broken_off(self, *args, **kwargs):
        raise ConnectionResetError(104, "reset")

    monkeypatch.setattr(loader, "SECONDS_TO_DIE", 0.1)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken_off)
    with pytest.raises(ConnectionResetError):
        trainer().predict(Sleepy(), datamodule=DeadlyImages(None, num_workers=2))


def test_an_exception_in_a_worker_names_its_image():
    data = DeadlyImages(None, num_workers=1)
    with pytest.raises(ZeroDivisionError, match=r"while making /photos/05\.jpg"):
        trainer().fit(Sleepy(), datamodule=data)


def test_other_errors_keep_their_text():
    data = DeadlyImages(None)
    data.setup()
    for error in (RuntimeError("CUDA out of memory"), DataError("x")):
        text = str(error)
        data.on_exception(error)
        assert str(error) == text
        assert error.__cause__ is None
    assert error_message(RuntimeError("CUDA out of memory")) is None

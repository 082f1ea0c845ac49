"""Callbacks that measure and show; they change nothing about what is trained."""

import time
from typing import Any

import lightning as L
import torch
from torch.distributed.fsdp import FSDPModule

from lfvit.data.batches import Batch, Sample
from lfvit.errors import DataError
from lfvit.measure.costs import count_macs
from lfvit.measure.thresholds import Answers, sweep
from lfvit.tracking.media import log_curve, log_predictions, predictions, shows_media
from lfvit.utils.distributed import gather_list
from lfvit.utils.seeding import seeded
from lfvit.utils.validation import check_whole


class Throughput(L.Callback):
    """Logs train/images_per_second: images of all processes per second of an epoch.

    Loading and augmenting are in it, validation is not.
    """

    def __init__(self) -> None:
        self.images = 0
        self.paused = self.started = self.validation_started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()  # a resumed run may be within an epoch, of which it measures the rest

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin()

    def _begin(self) -> None:
        self.images, self.paused, self.started = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, _: int
    ) -> None:
        self.images += len(batch.images) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paused += time.perf_counter() - self.validation_started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.perf_counter() - self.started - self.paused
        pl_module.log("train/images_per_second", self.images / seconds, rank_zero_only=True)


class LogPredictions(L.Callback):
    """Shows W&B and TensorBoard what the model answers to some validation images, and where it
    looks, and W&B the accuracy and cost of every threshold on all of them.

    The images are the same every time, spread over the classes; the weights are those that are
    validated (averaged ones, if the schedule averages).

    Args:
        images: how many; 0 for none.
        every_n_epochs: how often; always at the end. None: only then.

    Raises:
        ConfigError: a number that cannot be.
    """

    def __init__(self, images: int = 16, every_n_epochs: int | None = 10) -> None:
        check_whole("callbacks.predictions.images", images, 0)
        if every_n_epochs is not None:
            check_whole("callbacks.predictions.every_n_epochs", every_n_epochs, 1)
        self.images = images
        self.every_n_epochs = every_n_epochs
        self._answers: list[Answers] = []
        self._samples: list[Sample] | None = None
        self._logged_step = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._answers = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None and shows_media(trainer.loggers):
            self._answers.append(Answers(**{k: column.cpu() for k, column in outputs.items()}))

    # Before the callback that averages weights takes them out of the model again: Lightning calls
    # callbacks in the order of the config, and `build_trainer` appends that one.
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        often = self.every_n_epochs
        due = often is not None and (trainer.current_epoch + 1) % often == 0
        if due and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._logged_step != trainer.global_step:
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, module: Any) -> None:
        if not shows_media(trainer.loggers):
            return
        self._logged_step = trainer.global_step
        step = max(trainer.global_step - 1, 0)  # as Lightning counts: where val/* of now are logged
        answers = gather_list(self._answers)
        if not trainer.is_global_zero:
            return
        if answers:
            joined = Answers(*(torch.cat(column) for column in zip(*answers, strict=True)))
            macs = count_macs(module.model, "first"), count_macs(module.model, "second")
            log_curve(trainer.loggers, sweep(joined, *macs), step)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # the main process cannot go through sharded weights alone
        samples = [] if isinstance(module.model, FSDPModule) else self._chosen(data)
        if samples:
            with seeded(module.seed, trainer.current_epoch):  # of selectors that draw
                found = predictions(
                    module.model,
                    samples,
                    data.classes,
                    module.threshold,
                    trainer.precision_plugin,
                )
            log_predictions(trainer.loggers, found, step)

    def _chosen(self, data: Any) -> list[Sample]:
        if self._samples is None:
            try:
                self._samples = data.some_validation_samples(self.images) if self.images else []
            except DataError:  # unreadable images are the business of validation
                self._samples = []
        return self._samples

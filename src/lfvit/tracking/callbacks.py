"""Callbacks that measure and show; they change nothing about what is trained."""

import logging
import time
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from torchvision.utils import save_image

from lfvit.data.batches import Batch
from lfvit.errors import DataError
from lfvit.utils.seeding import seeded

log = logging.getLogger(__name__)


class Throughput(L.Callback):
    """Logs train/images_per_second of each epoch, over all processes.

    Loading and augmentation are included, validation is not.
    """

    def __init__(self) -> None:
        self.images, self.seconds = 0, 0.0
        self.since: float | None = None  # None until the first batch of a run resumed in an epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images, self.seconds, self.since = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, _: int
    ) -> None:
        now = time.perf_counter()
        if self.since is not None:
            self.seconds += now - self.since
            self.images += len(batch.images) * trainer.world_size
        self.since = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.seconds:
            speed = self.images / self.seconds
            pl_module.log("train/images_per_second", speed, rank_zero_only=True)


class LogPredictions(L.Callback):
    """Logs predictions on some validation images, the same every time, to W&B and TensorBoard.

    The weights are those that are validated: averaged ones, where weights are averaged.

    Args:
        images: how many; 0 for none.
        every_n_epochs: how often; always at the end. None: only then.
    """

    def __init__(self, images: int = 16, every_n_epochs: int | None = 10) -> None:
        self.images = images
        self.every_n_epochs = every_n_epochs
        self.logged_step = -1

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # after the last batch, when averaged weights are still in the model
        last = batch_idx + 1 == trainer.num_val_batches[dataloader_idx]
        often = self.every_n_epochs
        due = last and often is not None and (trainer.current_epoch + 1) % often == 0
        if due and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.logged_step != trainer.global_step:
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, module: Any) -> None:
        self.logged_step = trainer.global_step
        if not (trainer.loggers and self.images):
            return
        from lfvit.tracking.pictures import log_predictions  # matplotlib, only where it draws

        step = max(trainer.global_step - 1, 0)  # as Lightning counts: where val/* of now are logged
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with (
            seeded(module.seed, trainer.current_epoch),  # for selectors that draw
            trainer.precision_plugin.forward_context(),
            suppress(DataError),  # validation reports unreadable images
        ):
            log_predictions(
                trainer.loggers, module.model, data, module.threshold, self.images, step
            )


class ShowBatch(L.Callback):
    """Writes the first training batch as one PNG, as the model gets it.

    Args:
        path: of the PNG.
        images: at most so many of the batch.
    """

    def __init__(self, path: str, images: int = 32) -> None:
        self.path, self.images = path, images

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx or trainer.current_epoch or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mean, std = (
            torch.tensor(getattr(data.preprocessing, name), device=batch.images.device)
            for name in ("mean", "std")
        )
        shown = batch.images[: self.images].float()  # (n, 3, S, S)
        pixels = (shown * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
        save_image(pixels, self.path, nrow=8)
        log.info("the first training images, as augmented: %s", self.path)

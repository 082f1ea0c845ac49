"""Callbacks that measure and show; they change nothing about what is trained."""

import time
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import nn

from lfvit.data import ImageDataModule
from lfvit.data.batches import Batch
from lfvit.errors import DataError
from lfvit.tracking.loggers import WandbLogger
from lfvit.tracking.pictures import Prediction, draw_predictions, predict_images
from lfvit.utils.distributed import is_main_process
from lfvit.utils.seeding import seeded


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


def log_predictions(
    loggers: Sequence[Logger],
    model: nn.Module,
    data: ImageDataModule,
    threshold: float,
    count: int,
    step: int | None = None,
) -> None:
    """Log predictions on some validation images, spread over the classes.

    W&B gets "predictions", a table, and "regions", a picture per image with class attention and the
    second pass's input (see `draw_predictions`); TensorBoard gets the pictures as one.

    Args:
        loggers: others than these two get nothing; without these two, nothing is computed.
        model: on any device.
        data: set up for validation.
        threshold: eta.
        count: number of images.
        step: optimizer steps taken.

    Raises:
        DataError: none of the images can be read.
    """
    media = [log for log in loggers if isinstance(log, WandbLogger | TensorBoardLogger)]
    if not (media and count and is_main_process()):
        return
    samples = data.some_validation_samples(count)
    pixels = torch.stack([sample.pixels for sample in samples])
    targets, boxes = [s.target for s in samples], [s.box for s in samples]
    predictions = predict_images(model, pixels, data.classes, threshold, targets, boxes)
    for logger in media:
        if isinstance(logger, WandbLogger):
            logger.attempt(_log_wandb, logger, predictions, step)
        else:
            picture = np.asarray(_picture(predictions))
            logger.experiment.add_image("regions", picture, step, dataformats="HWC")
            logger.experiment.flush()


def _log_wandb(logger: WandbLogger, predictions: Sequence[Prediction], step: int | None) -> None:
    import wandb

    rows: list[list[Any]] = []
    for one in predictions:
        target = None if one.target is None else one.classes[one.target]
        rows.append([wandb.Image(one.image), target, one.label, one.confidence, one.exit_pass + 1])
    columns = ["image", "target", "prediction", "confidence", "exit_pass"]
    logger.log_table("predictions", columns, rows, step=step)
    captions = [one.caption for one in predictions]
    logger.log_image("regions", [_picture([one]) for one in predictions], step, caption=captions)


def _picture(predictions: Sequence[Prediction]) -> Image.Image:
    file = BytesIO()
    draw_predictions(predictions, file)
    return Image.open(file).convert("RGB")

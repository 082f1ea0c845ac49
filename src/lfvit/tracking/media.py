"""Pictures, curves and tables for the loggers that can show them."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import nn

from lfvit.data import ImageDataModule
from lfvit.tracking.loggers import WandbLogger
from lfvit.tracking.pictures import Prediction, draw_predictions, predict_images
from lfvit.utils.distributed import is_main_process


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

    names = ["image", "target", "prediction", "correct", "exit_pass", "confidence"]
    rows: list[list[Any]] = []
    for one in predictions:
        target = None if one.target is None else one.classes[one.target]
        passes = [one.classes[int(logits.argmax())] for logits in one.logits]
        row = [target, one.label, one.correct, one.exit_pass + 1, one.confidence, *passes]
        rows.append([wandb.Image(one.image), *row])
    names += [f"pass_{i + 1}" for i in range(len(predictions[0].logits))]
    logger.log_table("predictions", names, rows, step=step)
    captions = [one.caption for one in predictions]
    logger.log_image("regions", [_picture([one]) for one in predictions], step, caption=captions)


def log_table(loggers: Sequence[Logger], name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows with the same keys as a table (W&B only)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rows:
            logger.log_table(name, list(rows[0]), [list(row.values()) for row in rows])


def log_image(loggers: Sequence[Logger], name: str, path: Path) -> None:
    """Log a picture file (W&B and TensorBoard)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            picture = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, picture, dataformats="HWC")
            logger.experiment.flush()


def _picture(predictions: Sequence[Prediction]) -> Image.Image:
    file = BytesIO()
    draw_predictions(predictions, file)
    return Image.open(file).convert("RGB")

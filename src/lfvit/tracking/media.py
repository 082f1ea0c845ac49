"""Pictures, curves and tables for the loggers that can show them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from lfvit.data.batches import Sample
from lfvit.data.datamodule import normalise
from lfvit.measure.thresholds import OperatingPoint, confidence_of
from lfvit.models.resample import downsample
from lfvit.models.two_pass import TwoPassViT
from lfvit.tracking.loggers import WandbLogger
from lfvit.tracking.pictures import Look, save_looks
from lfvit.utils.distributed import is_main_process

CURVE = ("threshold", "top1", "exit_fraction", "gmacs")
PREDICTION = ("image", "label", "answer", "correct", "first", "second", "confidence", "exited")


class Prediction(NamedTuple):
    """What a model answers to one image, as a row of a table (see `PREDICTION`) and as a picture.

    label, answer, first, second: class names; second is None for a one-pass model. confidence: of
    the first or only pass. exited: whether it answers.
    """

    look: Look
    label: str
    answer: str
    first: str
    second: str | None
    confidence: float
    exited: bool

    @property
    def correct(self) -> bool:
        return self.answer == self.label


def predictions(
    model: nn.Module,
    samples: Sequence[Sample],
    classes: Sequence[str],
    threshold: float,
    precision: Any = None,
) -> list[Prediction]:
    """Run a model on some images, both passes on each.

    Args:
        model: on any device; its mode is put back as it was.
        samples: at least one.
        classes: their names, by class index.
        threshold: eta.
        precision: a plugin of Lightning that the model is used with, if any.
    """
    parameter = next(model.parameters())
    pixels = torch.stack([sample.pixels for sample in samples])
    images = normalise(pixels.to(parameter.device))
    images = images.to(parameter.dtype) if precision is None else precision.convert_input(images)
    context: AbstractContextManager[Any] = (
        nullcontext() if precision is None else precision.forward_context()
    )
    was_training = model.training
    model.eval()
    with torch.no_grad(), context:
        out: Any = model(images)
    model.train(was_training)
    size = model.region_size if isinstance(model, TwoPassViT) else 0
    selection = out.selection if isinstance(model, TwoPassViT) else None
    first_logits = (out if selection is None else out.first_logits).float().cpu()
    second_logits = None if selection is None else out.second_logits.float().cpu()
    confidence = confidence_of(first_logits)
    found = []
    for i, sample in enumerate(samples):
        first = classes[int(first_logits[i].argmax())]
        second = None if second_logits is None else classes[int(second_logits[i].argmax())]
        exited = second is None or bool(confidence[i] >= threshold)
        answer = first if exited or second is None else second
        logits = first_logits[i] if exited or second_logits is None else second_logits[i]
        look = Look(
            image=_array(sample.pixels),
            view=_array(downsample(sample.pixels[None].float())[0]),
            answer=f"{answer}, {logits.softmax(0).max():.0%}",
            exited=exited,
            box=sample.box,
        )
        if selection is not None:
            look = look._replace(
                gca=selection.gca[i].float().cpu(),
                fine=selection.fine_indices[i].cpu(),
                region=None if selection.region is None else selection.region[i].cpu(),
                region_size=size,
            )
        label = classes[int(sample.target)]
        found.append(Prediction(look, label, answer, first, second, confidence[i].item(), exited))
    return found


def shows_media(loggers: Sequence[Logger]) -> bool:
    """Whether one of them can show pictures."""
    return any(isinstance(logger, (WandbLogger, TensorBoardLogger)) for logger in loggers)


def log_predictions(
    loggers: Sequence[Logger], found: Sequence[Prediction], step: int | None = None
) -> None:
    """A table of predictions (W&B) and, for every image, where the model looked.

    The pictures are "looks": of two passes the half-resolution view, class attention over the
    image, and the second look with its region, see `save_looks`.
    """
    if not is_main_process() or not shows_media(loggers):
        return
    for run in _wandb(loggers):
        run.log_media(lambda: _wandb_predictions(found), step)
    for logger in _tensorboard(loggers):
        picture = np.asarray(_picture([prediction.look for prediction in found]))
        logger.experiment.add_image("looks", picture, step, dataformats="HWC")
        logger.experiment.flush()


def log_curve(
    loggers: Sequence[Logger], curve: Sequence[OperatingPoint], step: int | None = None
) -> None:
    """Every threshold of a two-pass model: a table, and accuracy against cost as a line (W&B)."""
    if not is_main_process():
        return
    for run in _wandb(loggers):
        run.log_media(lambda: _wandb_curve(curve), step)


def log_picture(loggers: Sequence[Logger], name: str, path: Path) -> None:
    """A picture file."""
    if not is_main_process():
        return
    for run in _wandb(loggers):
        run.attempt(run.log_image, name, [str(path)])
    for logger in _tensorboard(loggers):
        picture = np.asarray(Image.open(path).convert("RGB"))
        logger.experiment.add_image(name, picture, dataformats="HWC")
        logger.experiment.flush()


def log_rows(loggers: Sequence[Logger], rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of benchmark.py: speed as scalars for every logger, all columns as a table for W&B.

    A scalar is called TASK/MODEL/PRECISION/batch_SIZE/exits_SHARE/images_per_second, without the
    share for a one-pass model, the precision as "fp32_compiled" where it is; so is latency_ms_p50.
    """
    if not is_main_process() or not rows:
        return
    scalars = {
        f"{_row_name(row)}/{measure}": float(row[measure])
        for row in rows
        for measure in ("images_per_second", "latency_ms_p50")
    }
    for logger in loggers:
        logger.log_metrics(scalars)
        if isinstance(logger, WandbLogger):
            logger.log_media(lambda: _wandb_rows(rows))
        else:
            logger.finalize("success")  # there is no Trainer that would


def _row_name(row: Mapping[str, Any]) -> str:
    setting = f"{row['precision']}{'_compiled' if row['compiled'] else ''}"
    parts = [row["task"], row["model"], setting, f"batch_{row['batch_size']}"]
    if row["exit_fraction"] is not None:
        parts.append(f"exits_{row['exit_fraction']:.2f}")
    return "/".join(parts)


def _wandb_predictions(found: Sequence[Prediction]) -> dict[str, Any]:
    import wandb

    table = wandb.Table(columns=list(PREDICTION))
    for one in found:
        fields = [getattr(one, name) for name in PREDICTION[1:]]
        table.add_data(wandb.Image(one.look.image), *fields)
    looks = [wandb.Image(_picture([one.look]), caption=_caption(one)) for one in found]
    return {"predictions": table, "looks": looks}


def _wandb_curve(curve: Sequence[OperatingPoint]) -> dict[str, Any]:
    import wandb

    rows: list[Any] = [[dict(point)[name] for name in CURVE] for point in curve]
    table = wandb.Table(columns=list(CURVE), data=rows)
    line = wandb.plot.line(table, "gmacs", "top1", title="Accuracy against cost, every threshold")
    return {"threshold_curve": table, "accuracy_vs_gmacs": line}


def _wandb_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import wandb

    columns: list[Any] = list(rows[0])
    data: list[Any] = [[row.get(column) for column in columns] for row in rows]
    return {"benchmark": wandb.Table(columns=columns, data=data)}


def _caption(one: Prediction) -> str:
    where = "only" if one.second is None else "first" if one.exited else "second"
    judged = "right" if one.correct else f"wrong, it is {one.label}"
    return f"{one.answer}, by the {where} pass: {judged}"


def _picture(looks: list[Look]) -> Image.Image:
    file = BytesIO()
    save_looks(looks, file)
    return Image.open(file).convert("RGB")


def _array(pixels: Tensor) -> np.ndarray:
    """(3, H, W) in 0..255 -> (H, W, 3) uint8."""
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def _wandb(loggers: Sequence[Logger]) -> Iterator[WandbLogger]:
    return (logger for logger in loggers if isinstance(logger, WandbLogger))


def _tensorboard(loggers: Sequence[Logger]) -> Iterator[TensorBoardLogger]:
    return (logger for logger in loggers if isinstance(logger, TensorBoardLogger))

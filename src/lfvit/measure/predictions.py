"""The predictions of every pass for every image, and the file predictions.parquet."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from lfvit.data import Batch, ImageDataModule
from lfvit.errors import DataError
from lfvit.measure.localisation import coverage, region_mask
from lfvit.measure.schemas import PassResult
from lfvit.measure.thresholds import prediction_table
from lfvit.models.passes import forward_passes
from lfvit.utils.distributed import gather_list
from lfvit.utils.seeding import seed_all

FILE = "predictions.parquet"


class Predictions(NamedTuple):
    """Outputs of every pass of a model for N images.

    Attributes:
        logits: (N, C) float32 of each pass.
        targets: (N,) class indices.
        images: names, the same for every model evaluated on the data (paths within its folder).
        boxes: (N, 4) of the objects in pixels, where the data has them.
        covered: (N,) share of each box inside the region of the second pass.
        cells: (N, k) coarse cells chosen for the second pass.
    """

    logits: list[Tensor]
    targets: Tensor
    images: list[str] | None = None
    boxes: Tensor | None = None
    covered: Tensor | None = None
    cells: Tensor | None = None

    def table(self) -> pd.DataFrame:
        """The table of `lfvit.measure.thresholds`, indexed by image."""
        return prediction_table(self.logits, self.targets, self.images)


class _Collector(L.LightningModule):
    """Runs every image through every pass in ``trainer.predict``."""

    def __init__(self, model: nn.Module, image_names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.image_names = image_names

    def on_predict_start(self) -> None:
        if self.global_rank:  # random selectors draw differently for other images
            seed_all(torch.initial_seed() % 2**31, self.global_rank)

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        model: Any = self.model
        output = forward_passes(model, batch.images, batch.coarse_images)
        covered = cells = None
        if output.selection is not None:
            cells = output.selection.cells
            if batch.boxes is not None:
                mask = region_mask(output.selection, model.region_size)
                covered = coverage(mask, batch.boxes, model.image_size)
        valid, indices = batch.valid.cpu(), batch.indices
        assert indices is not None
        columns = [None if c is None else c.cpu()[valid] for c in (batch.boxes, covered, cells)]
        return Predictions(
            [logits.float().cpu()[valid] for logits in output.logits],
            batch.targets.cpu()[valid],
            [self.image_names[index] for index in indices[batch.valid].tolist()],
            *columns,
        )


def predict_all(
    trainer: L.Trainer, model: nn.Module, data: ImageDataModule, seed: int
) -> Predictions:
    """Run a model on the validation images, in their order.

    Every image counts once, however many processes share them, and every process returns all of
    them. Random selectors draw the same every time.

    Raises:
        DataError: no image can be read.
    """
    L.seed_everything(seed, verbose=False)
    batches: Any = trainer.predict(_Collector(model, data.image_names()), datamodule=data)
    return join(gather_list(batches))


def join(batches: list[Predictions]) -> Predictions:
    """Predictions of several batches as one.

    Raises:
        DataError: there are no images.
    """
    batches = [batch for batch in batches if len(batch.targets)]
    if not batches:
        raise DataError("no image could be read")
    passes, targets, images, *others = zip(*batches, strict=True)
    return Predictions(
        [torch.cat(logits) for logits in zip(*passes, strict=True)],
        torch.cat(targets),
        None if images[0] is None else [name for names in images for name in names],
        *(None if column[0] is None else torch.cat(column) for column in others),
    )


def pass_results(predictions: Predictions, macs: Tensor) -> list[PassResult]:
    """Accuracy of each pass on every image; with fewer than five classes, top-5 is all of them.

    Args:
        macs: (1 or N, P) float64, multiply-accumulates of each pass by itself, for every image or
            for each of some.
    """
    results = []
    gmacs = macs.cumsum(dim=1) / 1e9
    std = gmacs.std(dim=0).tolist() if len(gmacs) > 1 else [None] * gmacs.shape[1]
    for i, logits in enumerate(predictions.logits):
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
        hits = (best == predictions.targets[:, None]).double()
        top1, top5 = 100 * hits[:, 0].mean().item(), 100 * hits.sum(dim=1).mean().item()
        cost = gmacs[:, i].mean().item()
        results.append(PassResult(top1=top1, top5=top5, gmacs=cost, gmacs_std=std[i]))
    return results


def save_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write the table of predictions, a row per image."""
    table.reset_index().to_parquet(path, index=False, compression="zstd")


def read_predictions(path: Path) -> pd.DataFrame:
    """The table that `save_predictions` wrote, indexed by image.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); run evaluate.py again") from error
    passes = range(1, 1 + (len(rows.columns) - 2) // 2)
    names = [f"{name}_{i}" for i in passes for name in ("prediction", "confidence")]
    if not passes or list(rows) != ["image", "target", *names] or rows["image"].duplicated().any():
        raise DataError(f"{path}: not the predictions of this version; run evaluate.py again")
    return rows.set_index("image")

"""One run over a set of images, and everything that follows from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lfvit.data import Batch, ImageDataModule
from lfvit.errors import DataError
from lfvit.measure.calibration import Calibration, calibrate
from lfvit.measure.costs import count_macs
from lfvit.measure.localisation import (
    coverage,
    looked_at,
    random_windows,
    summarise,
)
from lfvit.measure.thresholds import answers_of, sweep
from lfvit.models.two_pass import TwoPassViT
from lfvit.utils.distributed import gather_list
from lfvit.utils.seeding import seed_all


class Outputs(NamedTuple):
    """What a model said about N images.

    first: (N, C) logits of the only or first pass. second: (N, C) or None for a one-pass model.
    targets: (N,). boxes: (N, 4) or None. covered: (N,) share of each box looked at, or None.
    cells: (N, k) coarse cells selected for the second pass, or None.
    images: (N,) indices of the images in the validation set, or None.
    """

    first: Tensor
    second: Any
    targets: Tensor
    boxes: Any = None
    covered: Any = None
    cells: Any = None
    images: Any = None


class Collector(L.LightningModule):
    """Runs a model in ``trainer.predict``, every image through every pass; see `collect`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def on_predict_start(self) -> None:
        if self.global_rank:  # selectors that draw do not draw the same for other images
            seed_all(torch.initial_seed() % 2**31, self.global_rank)

    def predict_step(self, batch: Batch, batch_idx: int) -> Outputs:
        outputs = self._outputs(batch)._replace(images=batch.indices)
        valid = batch.valid.cpu()
        return Outputs(*(None if c is None else c.cpu()[valid] for c in outputs))

    def _outputs(self, batch: Batch) -> Outputs:
        model = self.model
        if not isinstance(model, TwoPassViT):
            return Outputs(model(batch.images).float().cpu(), None, batch.targets.cpu())
        out = model(batch.images, batch.coarse_images)
        boxes = covered = None
        if batch.boxes is not None:
            mask = looked_at(out.selection, model.region_size)
            boxes, covered = batch.boxes.cpu(), coverage(mask, batch.boxes, model.image_size).cpu()
        return Outputs(
            out.first_logits.float().cpu(),
            out.second_logits.float().cpu(),
            batch.targets.cpu(),
            boxes,
            covered,
            out.selection.cells.cpu(),
        )


def collect(trainer: L.Trainer, model: nn.Module, data: ImageDataModule, seed: int) -> Outputs:
    """What a model says about the validation images, in their order, in every process.

    Random selectors draw the same every time.

    Raises:
        DataError: not one of them can be read.
    """
    L.seed_everything(seed, verbose=False)
    batches: Any = trainer.predict(Collector(model), datamodule=data)
    return join(gather_list(batches))


def join(batches: list[Outputs]) -> Outputs:
    """The outputs of all batches as one.

    Raises:
        DataError: there are none.
    """
    columns: Any = [None if c[0] is None else torch.cat(c) for c in zip(*batches, strict=True)]
    outputs = Outputs(*columns)
    if not len(outputs.targets):
        raise DataError("not one image could be read")
    return outputs


def pass_accuracy(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Top-1 and top-5 in percent; with fewer than five classes, top-5 is all of them."""
    classes = logits.shape[1]
    return {
        f"top{k}": 100
        * multiclass_accuracy(
            logits, targets, classes, average="micro", top_k=min(k, classes)
        ).item()
        for k in (1, 5)
    }


def results(
    model: nn.Module, outputs: Outputs, *, threshold: float, calibration: Calibration
) -> dict[str, Any]:
    """The contents of evaluate.json: each pass, the threshold curve, and calibrated points.

    Args:
        model: for its cost.
        outputs: see `Outputs`.
        threshold: eta reported as "operating_point".
        calibration: which points to choose on one part of the images.
    """
    found: dict[str, Any] = {"images": len(outputs.targets)}
    first = pass_accuracy(outputs.first, outputs.targets)
    if outputs.second is None:
        found["first"] = {**first, "gmacs": count_macs(model) / 1e9}
        nothing = {"operating_point": None, "calibrated": None, "calibration": None}
        return {**found, "second": None, "curve": [], **nothing}
    macs = count_macs(model, "first"), count_macs(model, "second")
    second = pass_accuracy(outputs.second, outputs.targets)
    found["first"] = {**first, "gmacs": macs[0] / 1e9}
    found["second"] = {**second, "gmacs": sum(macs) / 1e9}
    answers = answers_of(outputs.first, outputs.second, outputs.targets)
    found["curve"] = sweep(answers, *macs)
    found["operating_point"] = sweep(answers, *macs, [threshold])[0]
    points = calibrate(outputs.first, outputs.second, outputs.targets, macs, calibration)
    found["calibrated"] = calibrated(points)
    found["calibration"] = points
    if outputs.covered is not None and isinstance(model, TwoPassViT):
        found["localisation"] = {
            "region": summarise(outputs.covered),
            "random_windows": random_windows(
                outputs.boxes, model.grid, model.region_size, model.image_size
            ),
        }
    return found


def calibrated(points: Mapping[str, Any]) -> dict[str, Any]:
    """The rule that is always asked for, `max_loss`, reported on the other part of the images."""
    (chosen,) = (rule for rule in points["rules"] if rule["name"] == "max_loss")
    return {
        "rule": chosen["rule"],
        **{key: points[key] for key in ("seed", "calibration_images", "reported_images")},
        **chosen["reported"],
        "second_top1": points["both_passes"]["reported"]["top1"],
    }

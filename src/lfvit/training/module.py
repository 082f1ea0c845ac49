"""The LightningModule: shared-weight model, two-stage loss, phases and metrics."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler as TimmScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lfvit.data.batches import Batch
from lfvit.models.lv_vit import ONE_PASS_SHARE
from lfvit.models.reduction.patch import answer
from lfvit.models.reduction.run import Run
from lfvit.models.token_mix import TokenMix
from lfvit.models.two_pass import TwoPassViT
from lfvit.models.weight_files import RECORD
from lfvit.training.learned import refuse_unlearnable
from lfvit.training.losses import divergence, two_pass_losses
from lfvit.training.optimizers import build_lr_scheduler, build_optimizer
from lfvit.training.settings import Schedule
from lfvit.training.token_labels import (
    AUX_WEIGHT,
    TokenTargets,
    has_aux_head,
    second_pass_labels,
    token_labelling_loss,
)
from lfvit.utils.seeding import seed_all


class PercentAccuracy(MulticlassAccuracy):
    """Top-k accuracy in percent, the unit of every "top1" and "top5" of this project."""

    def compute(self) -> Tensor:
        return 100 * super().compute()


class Classifier(L.LightningModule):
    """Trains a model of `lfvit.create_model`, one-pass or two-pass.

    In phase one of a two-pass model the second pass sees the whole image, in phase two what the
    model's selector chooses. Validation always uses the selector: it measures the model that will
    be used.

    Args:
        model: one-pass ViT or `TwoPassViT`.
        schedule: the recipe.
        optimizer, lr_scheduler: see `lfvit.training.optimizers`; without them AdamW and a constant
            learning rate.
        selection_epoch: first epoch (0-based) of phase two.
        num_classes: C.
        threshold: eta at which validation reports early exit.
        seed: of stochastic depth and random selectors.
        teacher: what `schedule.distill_weight` distils from; frozen, and saved in checkpoints, so
            that a resumed run has the same one.
        record: plain values from which the model can be rebuilt, stored in every checkpoint.
        compile_passes: run the training forward under torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        num_classes: int,
        optimizer: partial[Optimizer] | None = None,
        lr_scheduler: partial[Any] | None = None,
        selection_epoch: int = 0,
        threshold: float = 0.7,
        seed: int = 0,
        teacher: nn.Module | None = None,
        record: Mapping[str, Any] | None = None,
        compile_passes: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.optimizer = optimizer or partial(AdamW)
        self.lr_scheduler = lr_scheduler
        self.selection_epoch = selection_epoch
        self.threshold = threshold
        self.seed = seed
        self.record = dict(record or {})
        self.num_classes = num_classes
        self.two_stage = isinstance(model, TwoPassViT)
        # in a tuple, so that it is no part of the trained model
        self._teacher = () if teacher is None else (teacher.requires_grad_(False).eval(),)
        self.learned = refuse_unlearnable(model, compile_passes)
        self.learns_tokens = has_aux_head(model)
        if compile_passes:
            model.compile()  # in place: names in the state dict stay as they are
        accuracy = MetricCollection(
            {
                "top1": PercentAccuracy(num_classes, average="micro"),
                "top5": PercentAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
            }
        )
        self.val_accuracy = accuracy.clone(prefix="val/")
        self.first_accuracy = accuracy.clone(prefix="val/first_") if self.two_stage else None
        # over the images of all processes; sync_dist would average the processes' means
        means = ["loss", *(("early_exit_top1", "exit_fraction") if self.two_stage else ())]
        self.val_means = MetricCollection(
            {f"val/{name}": MeanMetric() for name in means}, compute_groups=False
        )

    @property
    def phase_one(self) -> bool:
        """Whether the second pass still sees the whole image."""
        return self.two_stage and self.current_epoch < self.selection_epoch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_all(self.seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._batch_loss(batch)
        self._log("train/loss", loss, batch, prog_bar=True)
        return loss

    def _batch_loss(self, batch: Batch) -> Tensor:
        """The mean over the images of this process."""
        tokens = (
            TokenTargets.of(batch, self.model, self.num_classes) if self.learns_tokens else None
        )
        return self._two_pass_loss(batch, tokens) if self.two_stage else self._loss(batch, tokens)

    def _loss(self, batch: Batch, tokens: TokenTargets | None) -> Tensor:
        """Of a one-pass model."""
        model: Any = self.model
        run = patches = None
        mix: tuple[TokenMix | None, ...] = ()
        if tokens is not None:
            mix = (tokens.mix,)
            dense = model(batch.images, *mix, dense=True)
            loss = token_labelling_loss(dense, tokens.images, tokens.patches, self._aux_weight)
            logits = dense.answer(ONE_PASS_SHARE)
        else:
            logits, patches, run = self._answer(model, batch.images)
            loss = F.cross_entropy(logits, batch.targets)
        taught = None
        for teacher in self._teacher:
            with torch.no_grad():
                wanted, taught, _ = self._answer(teacher, batch.images, *mix)
            loss = loss + self._distilled(logits, wanted, batch)
        if run is not None and run.carried is not None:
            extra = model.blocks.reducer.loss(run.carried, patches, taught)
            if extra is not None:
                self._log("train/reducer_loss", extra, batch)
                loss = loss + extra
        return loss

    def _answer(
        self, model: nn.Module, images: Tensor, *mix: TokenMix | None
    ) -> tuple[Tensor, Tensor | None, Run | None]:
        """A one-pass model's logits, with what the loss of a learned reducer needs."""
        return answer(model, images) if self.learned else (model(images, *mix), None, None)

    def _two_pass_loss(self, batch: Batch, tokens: TokenTargets | None) -> Tensor:
        model: Any = self.model
        options: dict[str, Any] = {"selector": "none" if self.phase_one else None}
        targets, second = batch.targets, None
        if tokens is not None:
            options["mix"] = tokens.mix
        out = model(batch.images, batch.coarse_images, **options)
        if tokens is not None:
            targets = tokens.images
            labels = second_pass_labels(tokens.patches, out.selection, model.background)
            second = token_labelling_loss(out.dense, targets, labels, self._aux_weight)
        first, second = two_pass_losses(
            out.first_logits, out.second_logits, targets, self.schedule.loss, second
        )
        self._log("train/first_loss", first, batch)
        self._log("train/second_loss", second, batch)
        loss = second + first
        for teacher in self._teacher:
            with torch.no_grad():
                wanted = teacher(batch.images, batch.coarse_images, **options).second_logits
            loss = loss + self._distilled(out.second_logits, wanted, batch)
        return loss

    def _distilled(self, logits: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """What learning from the teacher's logits adds to the loss."""
        loss = self.schedule.distill_weight * divergence(logits, wanted)
        self._log("train/distill_loss", loss, batch)
        return loss

    @property
    def _aux_weight(self) -> float:
        weight = self.schedule.aux_weight
        return AUX_WEIGHT if weight is None else weight

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device, next(self.model.parameters()).dtype)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        valid = batch.valid
        targets = batch.targets[valid]
        if self.first_accuracy is not None:
            out = self.model(batch.images, batch.coarse_images)
            first, logits = out.first_logits[valid], out.second_logits[valid]
            self.first_accuracy.update(first, targets)
            confidence, answer = first.float().softmax(dim=1).max(dim=1)
            exited = confidence >= self.threshold
            early = torch.where(exited, answer, logits.argmax(dim=1))
            self._average("val/early_exit_top1", 100 * (early == targets).float())
            self._average("val/exit_fraction", exited.float())
        else:
            logits = self.model(batch.images)[valid]
        self.val_accuracy.update(logits, targets)
        self._average("val/loss", F.cross_entropy(logits, targets, reduction="none"))
        self._log_validation()

    def _average(self, name: str, values: Tensor) -> None:
        """values: (b,), one per image that counts."""
        self.val_means[name].update(values)

    def _log_validation(self) -> None:
        self.log_dict(self.val_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        if self.first_accuracy is not None:
            self.log_dict(self.first_accuracy, on_step=False, on_epoch=True)
        self.log_dict(self.val_means, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The learning rate scales linearly with the images per optimizer step."""
        trainer: Any = self.trainer
        processes, batches = trainer.world_size, trainer.accumulate_grad_batches
        images_per_step = trainer.datamodule.batch_size * processes * batches
        scale = images_per_step / self.schedule.lr_batch
        optimizer = build_optimizer(self.model, self.optimizer, scale)
        if self.lr_scheduler is None:
            return optimizer
        steps = trainer.estimated_stepping_batches
        lr_scheduler = build_lr_scheduler(optimizer, self.lr_scheduler, trainer.max_epochs, steps)
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if isinstance(scheduler, TimmScheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = self.record
        for teacher in self._teacher:
            checkpoint["teacher"] = teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for teacher in self._teacher:
            teacher.load_state_dict(checkpoint["teacher"])

    def _log(self, name: str, value: Tensor, batch: Batch, **options: Any) -> None:
        self.log(name, value.detach(), batch_size=len(batch.targets), **options)

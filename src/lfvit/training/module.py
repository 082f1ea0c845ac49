"""The LightningModule: losses of all passes, the two phases of training, and metrics."""

import logging
from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import Any

import lightning as L
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.scheduler.scheduler import Scheduler as TimmScheduler
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import MeanMetric

from lfvit.data.batches import Batch
from lfvit.errors import ConfigError
from lfvit.measure.thresholds import NO_EXIT, advise, calibrate, prediction_table, sweep
from lfvit.models.blocks import trainable_attention
from lfvit.models.checkpoints import RECORD
from lfvit.models.passes import forward_passes, num_passes
from lfvit.models.reducers import Reducer
from lfvit.models.reduction import forward_tokens
from lfvit.training.losses import kl_divergence, pass_losses
from lfvit.training.optimizers import build_lr_scheduler, build_optimizer
from lfvit.training.settings import Schedule
from lfvit.training.token_labels import TokenTargets, has_aux_head, token_labelling_loss
from lfvit.utils.distributed import gather_list
from lfvit.utils.seeding import seed_all

log = logging.getLogger(__name__)

PASSES = ("first", "second", "third")
EARLY_EXIT = ("val/early_exit_top1", "val/exit_fraction", "val/threshold")


class Classifier(L.LightningModule):
    """Trains a model of `lfvit.create_model`, with any number of passes.

    At first only the first pass may train (`second_epoch`). In phase one the second pass sees the
    whole image, in phase two what the model's selector chooses. Validation always uses the
    selector: it measures the model that will be used.

    Args:
        model: images -> logits, or a model with passes.
        schedule: the recipe.
        num_classes: C.
        optimizer, lr_scheduler: see `lfvit.training.optimizers`; without them AdamW and a constant
            learning rate.
        selection_epoch: first epoch (0-based) of phase two.
        second_epoch: first epoch (0-based) in which the second pass trains.
        threshold: eta of early exit; None: calibrated at the end of every validation, see
            `lfvit.measure.thresholds.calibrate`. Checkpoints have it in their record.
        seed: of stochastic depth and random selectors.
        teacher: what `schedule.distill_weight` distils from; frozen, and, unless it has a file of
            its own, saved in checkpoints, so that a resumed run has the same one.
        record: plain values from which the model can be rebuilt, stored in every checkpoint.
        compile_passes: run the training forward under torch.compile.
    """

    teacher: Any

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        num_classes: int,
        optimizer: partial[Optimizer] | None = None,
        lr_scheduler: partial[Any] | None = None,
        selection_epoch: int = 0,
        second_epoch: int = 0,
        threshold: float | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
        record: Mapping[str, Any] | None = None,
        compile_passes: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.num_classes = num_classes
        self.optimizer: partial[Any] = optimizer or partial(AdamW)
        self.lr_scheduler = lr_scheduler
        self.selection_epoch = selection_epoch
        self.second_epoch = second_epoch
        self.calibrates = threshold is None
        self.threshold = 0.7 if threshold is None else threshold
        self.calibrated_on: int | None = None  # images
        self.advice = ""  # which threshold to use, after a validation
        self._validated = False  # in this epoch
        self.seed = seed
        self.record = dict(record or {})
        # not as a submodule, so that it is neither trained nor averaged
        vars(self)["teacher"] = None if teacher is None else teacher.requires_grad_(False).eval()
        self.num_passes = num_passes(model)
        self.learns_tokens = has_aux_head(model)
        self.learned = any(isinstance(m, Reducer) and m.learned for m in model.modules())
        if self.learned and (self.num_passes > 1 or self.learns_tokens or compile_passes):
            raise ConfigError(
                "a reducer with a loss of its own is trained with method=vit, compile=false and a "
                "backbone without auxiliary head"
            )
        if schedule.teacher is not None and (self.learned or self.learns_tokens):
            raise ConfigError(
                "schedule.teacher teaches by logits alone; a reducer with a loss of its own and "
                "backbones with an auxiliary head learn with schedule.teacher=null"
            )
        for name, parameter in model.named_parameters():
            if any(part in name for part in schedule.frozen):
                parameter.requires_grad_(False)
        if compile_passes:
            model.compile()  # in place: names in the state dict stay as they are
        # of earlier passes, then of the last one
        self.prefixes = [*(f"val/{name}_" for name in PASSES[: self.num_passes - 1]), "val/"]
        names = ["val/loss", *(f"{p}{name}" for p in self.prefixes for name in ("top1", "top5"))]
        self.validated = [*names, *(EARLY_EXIT if self.num_passes > 1 else ())]
        self.val_metrics: Any = nn.ModuleDict({name: MeanMetric() for name in names})
        self.val_outputs: list[pd.DataFrame] = []  # of this process and validation

    @property
    def phase_one(self) -> bool:
        """Whether the second pass still sees the whole image."""
        return self.num_passes > 1 and self.current_epoch < self.selection_epoch

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device, next(self.model.parameters()).dtype)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_all(self.seed, self.current_epoch, batch_idx, self.global_rank)
        batches: Any = self.trainer.num_training_batches
        for module in self.model.modules():
            if isinstance(module, Reducer):
                module.start_batch(self.current_epoch + batch_idx / batches)
        if self.current_epoch < self.schedule.backbone_start:
            optimizer: Any = self.optimizers()
            for group in optimizer.param_groups:  # the scheduler sets it again after every step
                group["lr"] = 0.0 if group.get("backbone") else group["lr"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with trainable_attention(self.model, batch.images):
            losses = self.learned_reducer_losses(batch) if self.learned else self.losses(batch)
        loss: Any = sum(losses.values())
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.images))
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(batch.images))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The learning rate: of the head, the highest of all."""
        self.log("train/lr", max(group["lr"] for group in optimizer.param_groups))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss: scalars, mean over the images of this process, in nats."""
        model: Any = self.model
        targets, last_loss = batch.targets, None
        options: dict[str, Any] = {"selector": "none"} if self.phase_one else {}
        if self.learns_tokens:
            tokens = TokenTargets.of(batch, model, self.num_classes)
            targets, options["mix"] = tokens.images, tokens.mix
        inputs = (batch.images, batch.coarse_images)
        alone = self.current_epoch < self.second_epoch and hasattr(model, "first_pass")
        if self.num_passes > 1 and alone:
            first = model.first_pass(*inputs, options.get("mix"))
            # the weights that are not used yet get gradients, which several processes wait for
            unused = [model.second_pos_embed, *(model.reuse or nn.Identity()).parameters()]
            nothing = sum(0.0 * parameter.sum() for parameter in unused)
            return {"first_loss": F.cross_entropy(first.logits, targets) + nothing}
        out: Any = forward_passes(model, *inputs, **options)
        if self.learns_tokens:
            background = getattr(model, "background", True)
            labels = tokens.select(out.selection, background)
            num_patches = tokens.patches.shape[1] if background else labels.shape[1]
            aux_weight = self.schedule.aux_weight
            last_loss = token_labelling_loss(out.dense, targets, labels, aux_weight, num_patches)
        # the first pass learns by its class token alone, from the class token's answer
        logits = out.class_logits or out.logits
        by_pass = pass_losses(logits, targets, self.schedule.loss, last_loss)
        losses = {f"{name}_loss": loss for name, loss in zip(PASSES, by_pass, strict=False)}
        if self.teacher is not None:
            theirs = options if num_passes(self.teacher) > 1 or self.learns_tokens else {}
            with torch.no_grad():
                taught = forward_passes(self.teacher, *inputs, **theirs).logits[-1]
            divergence: Any = sum(kl_divergence(one, taught) for one in out.logits)
            losses["distill_loss"] = self.schedule.distill_weight * divergence
        return losses

    def learned_reducer_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss of a one-pass model whose reducer has a loss of its own."""
        model: Any = self.model
        logits, patches, state = forward_tokens(model, batch.images)
        losses = {"first_loss": F.cross_entropy(logits, batch.targets)}
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                wanted, taught, _ = forward_tokens(self.teacher, batch.images)
            divergence = kl_divergence(logits, wanted)
            losses["distill_loss"] = self.schedule.distill_weight * divergence
        loss = model.blocks.reducer.loss(state, patches, taught)
        if loss is not None:
            losses["reducer_loss"] = loss
        return losses

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Means over the images of all processes; samples that are no image do not count."""
        valid = batch.valid
        targets = batch.targets[valid]
        out = forward_passes(self.model, batch.images, batch.coarse_images)
        logits = [one[valid] for one in out.logits]  # (b, C) each
        values = {"val/loss": F.cross_entropy(logits[-1], targets, reduction="none")}
        for prefix, one in zip(self.prefixes, logits, strict=True):
            top5 = one.topk(min(5, self.num_classes)).indices == targets[:, None]  # (b, 5)
            values |= {f"{prefix}top1": 100.0 * top5[:, 0], f"{prefix}top5": 100.0 * top5.any(1)}
        if self.num_passes > 1:
            self.val_outputs.append(prediction_table(logits, targets))
        for name, metric in self.val_metrics.items():
            metric.update(values[name].float())
            self.log(name, metric, prog_bar=name == "val/top1", on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Early exit on the images of all processes, at a threshold that is calibrated on them."""
        self._validated = not self.trainer.sanity_checking
        tables, self.val_outputs = gather_list(self.val_outputs), []
        if not any(map(len, tables)) or self.trainer.sanity_checking:
            return
        outputs, calibrated = pd.concat(tables), calibrate(pd.concat(tables))
        if self.calibrates:
            self.threshold, self.calibrated_on = calibrated, len(outputs)
        etas = [self.threshold, calibrated, NO_EXIT]
        points: Any = sweep(outputs, [0.0] * self.num_passes, etas).to_dict("records")
        self.advice = advise(*points) if self._validated else ""
        values = {"early_exit_top1": points[0]["top1"], "threshold": self.threshold}
        for name, value in {**values, "exit_fraction": points[0]["exit_fraction"]}.items():
            self.log(f"val/{name}", value, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """One line with the metrics of the epoch."""
        metrics = self.trainer.callback_metrics
        shown = [name for name in self.validated if "top5" not in name] if self._validated else []
        self._validated = False
        line = "  ".join(
            f"{name} {metrics[name]:.4g}"
            for name in ("train/loss", *shown, "train/images_per_second")
            if name in metrics
        )
        if self.trainer.is_global_zero:
            epochs = f"{self.current_epoch + 1}/{self.trainer.max_epochs}"
            log.info("epoch %s  %s", epochs, line)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The learning rate scales linearly with the images per optimizer step."""
        trainer: Any = self.trainer
        images = trainer.datamodule.batch_size * trainer.world_size
        lr_scale = images * trainer.accumulate_grad_batches / self.schedule.lr_batch
        layer_decay = self.schedule.layer_decay
        optimizer = build_optimizer(
            self.model, self.optimizer, lr_scale, layer_decay, self.schedule.backbone_lr
        )
        if self.lr_scheduler is None:
            return optimizer
        trainer.fit_loop.setup_data()
        steps = ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        steps *= trainer.max_epochs  # wherever max_steps or max_time end it
        lr_scheduler = build_lr_scheduler(optimizer, self.lr_scheduler, trainer.max_epochs, steps)
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        if isinstance(scheduler, TimmScheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        eta = {"threshold": self.threshold, "calibrated_on": self.calibrated_on}
        checkpoint[RECORD] = {**self.record, **eta} if self.record else {}
        if self.teacher is not None and self.schedule.teacher is None:
            checkpoint["teacher"] = self.teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.calibrates:
            self.threshold = checkpoint[RECORD].get("threshold", self.threshold)
            self.calibrated_on = checkpoint[RECORD].get("calibrated_on")
        if self.teacher is not None and self.schedule.teacher is None:
            self.teacher.load_state_dict(checkpoint["teacher"])

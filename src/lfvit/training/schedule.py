"""When things change during training: learning rate and the switch from phase one to two."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lfvit.training.losses import LOSSES
from lfvit.utils.validation import check_choice, check_names, check_range, check_whole


@dataclass(frozen=True)
class Schedule:
    """A training recipe; DeiT's is the default, with the published phases of LF-ViT.

    epochs: passes over the training images. selection_start: when the second pass stops seeing the
    whole image and starts to select, in epochs (whole number) or as a fraction of them (below 1).
    loss: "ce_kl" or "ce_ce". lr: for lr_batch images per step, scaled linearly with the global
    batch. warmup_lr, min_lr: where the warm-up starts and the cosine ends, not scaled.
    weight_decay: of matrices only. drop_path_rate: stochastic depth of the last block. ema_decay:
    of the averaged weights, the ones evaluated and saved; null keeps none. distill_weight: of the
    KL divergence from the teacher, which is the model as training found it, without its reducer.
    aux_weight: of the loss of patch tokens, for backbones with an auxiliary head; null is 0.5
    there.
    """

    epochs: int = 350
    selection_start: int | float = 230
    loss: str = "ce_kl"
    lr: float = 5e-4
    lr_batch: int = 512
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    drop_path_rate: float = 0.1
    ema_decay: float | None = 0.99996
    distill_weight: float = 0.0
    aux_weight: float | None = None

    def __post_init__(self) -> None:
        check_choice("schedule.loss", self.loss, LOSSES)
        check_whole("schedule.epochs", self.epochs, 1)
        check_whole("schedule.lr_batch", self.lr_batch, 1)
        check_range("schedule.selection_start", self.selection_start, 0, self.epochs)
        if self.selection_start > 1 and self.selection_start % 1:
            check_whole("schedule.selection_start", self.selection_start, 1)
        check_range("schedule.warmup_epochs", self.warmup_epochs, 0, self.epochs)
        check_range("schedule.lr", self.lr, 0, above=True)
        for name in ("warmup_lr", "min_lr", "weight_decay", "distill_weight"):
            check_range(f"schedule.{name}", getattr(self, name), 0)
        check_range("schedule.drop_path_rate", self.drop_path_rate, 0, 1, below=True)
        if self.ema_decay is not None:
            check_range("schedule.ema_decay", self.ema_decay, 0, 1, above=True, below=True)
        if self.aux_weight is not None:
            check_range("schedule.aux_weight", self.aux_weight, 0)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Schedule":
        """From a plain mapping; an unknown name is a `ConfigError`."""
        check_names("schedule", settings, [field.name for field in fields(cls)])
        return cls(**settings)

    @property
    def selection_epoch(self) -> int:
        """First epoch (0-based) of phase two."""
        start = self.selection_start
        return round(start * self.epochs) if 0 < start < 1 else int(start)

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate after warm-up, for so many images per optimizer step."""
        return self.lr * global_batch / self.lr_batch

    def lr_at(self, progress: float, peak: float) -> float:
        """Linear warm-up, then a cosine.

        Args:
            progress: epochs done, fractional.
            peak: see `peak_lr`.
        """
        if progress < self.warmup_epochs:
            return self.warmup_lr + (peak - self.warmup_lr) * progress / self.warmup_epochs
        rest = (progress - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.min_lr + (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))

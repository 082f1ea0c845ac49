"""Averaged weights, and what happens when numbers are not finite."""

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lfvit.errors import ConfigError, TrainingError
from lfvit.utils.validation import check_choice

log = logging.getLogger(__name__)

ADVICE = (
    "Lower optimizer.lr, lengthen lr_scheduler.warmup_epochs, or set trainer.gradient_clip_val=1 "
    "or trainer.precision=32-true, and start from the last checkpoint, which is kept, with "
    "init_from="
)


@torch.no_grad()
def find_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or infinite value; None if there is none.

    Waits for the device once where all are finite.
    """
    if get_total_norm([t for t in tensors.values() if t.numel()], float("inf")).isfinite():
        return None
    return next(name for name, tensor in tensors.items() if not tensor.isfinite().all())


class NonFiniteGuard(Callback):
    """Stops the training, or skips the optimizer step, where a loss or gradient is not finite.

    A skipped step changes neither weights nor moments nor averaged weights. It counts in the
    learning-rate schedule and in ``global_step``. With precision=16-mixed the gradient scaler skips
    such steps, as it always does.

    Several processes decide alike: a loss that is not finite makes all gradients of its backward
    pass NaN, and DistributedDataParallel adds these to those of every process.

    Args:
        action: "stop", or "skip", which counts skipped steps as ``train/skipped_steps``.
        max_skipped: with "skip", training stops after so many skipped steps in a row.

    Raises:
        ConfigError: an unknown action.
    """

    def __init__(self, action: str = "stop", max_skipped: int = 10) -> None:
        check_choice("callbacks.nonfinite.action", action, ("stop", "skip"))
        self.max_skipped = max_skipped if action == "skip" else 0
        self.skipped = 0  # steps of this training
        self.in_a_row = 0
        self.last_skipped = -1  # its global_step
        self._losses: list[tuple[int, Tensor]] = []  # batch index, loss: of the coming step

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("skipped", "in_a_row", "last_skipped")}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        vars(self).update(state_dict)

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        self._losses.append((trainer.fit_loop.batch_idx, loss.detach()))
        finite = loss.detach().isfinite()
        # an infinite loss can have finite gradients, which other processes could not see
        loss.register_hook(lambda grad: torch.where(finite, grad, torch.nan))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        losses, self._losses = self._losses, []
        gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        broken = None if scaler is not None else find_nonfinite(gradients)
        if broken is None:
            self.in_a_row = 0
            return
        batch, loss = next((pair for pair in losses if not pair[1].isfinite()), losses[-1])
        reason = f"the loss is {loss.item()}"
        if loss.isfinite():
            reason = f"the loss is finite, but the gradient of {broken} is not"
        where = f"epoch {trainer.current_epoch}, batch {batch} (step {trainer.global_step})"
        if self.in_a_row == self.max_skipped:
            tried = f" after {self.max_skipped} skipped steps" if self.max_skipped else ""
            raise TrainingError(f"{reason} at {where}{tried}. {ADVICE}")
        self.in_a_row += 1
        self.skipped += 1
        self.last_skipped = trainer.global_step
        if trainer.is_global_zero:
            log.warning("skipped a step, %d so far: %s at %s", self.skipped, reason, where)
        optimizer.zero_grad()  # optimizers leave weights without a gradient as they are

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.max_skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Finite gradients can still take a weight out of range, by a step that is too long."""
        broken = find_nonfinite(dict(pl_module.named_parameters()))
        if broken is not None:
            epoch = trainer.current_epoch
            raise TrainingError(f"{broken} is not finite in epoch {epoch}. {ADVICE}")


class EMA(EMAWeightAveraging):
    """Lightning's exponential moving average, without the optimizer steps that were skipped.

    Args:
        decay: share of the average that each optimizer step keeps.
        warmup: a smaller share at first, (1 + t) / (10 + t) in step t, so that a short training
            does not average the weights it started from.
        keep_start: instead of both, the share that the weights training started from have in the
            average at its end; the decay follows from the number of steps. What pretrained weights
            know is kept, much as by WiSE-FT (Wortsman et al. 2022).

    Raises:
        ConfigError: keep_start is not between 0 and 1.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warmup: bool = False,
        keep_start: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(decay=decay, **options)
        if keep_start is not None and not 0 < keep_start < 1:
            raise ConfigError(
                f"callbacks.ema.keep_start={keep_start} is the share of the first weights in the "
                "average; valid: above 0 and below 1, or null"
            )
        self.keep_start, self.decay = keep_start, decay

        def average(old: Any, new: Any, steps: Tensor) -> None:
            decay = self.decay
            if warmup and keep_start is None:
                t = int(steps)  # a buffer, which checkpoints keep
                decay = min(decay, (1 + t) / (10 + t))
            like_old = [value.to(average.dtype) for average, value in zip(old, new, strict=True)]
            get_ema_multi_avg_fn(decay)(old, like_old, steps)

        self._kwargs |= {"avg_fn": None, "multi_avg_fn": average}

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if self.keep_start is not None:
            self.decay = self.keep_start ** (1 / trainer.estimated_stepping_batches)
        skipped = [c.last_skipped for c in trainer.callbacks if isinstance(c, NonFiniteGuard)]
        if trainer.global_step - 1 not in skipped:
            super().on_train_batch_end(trainer, *arguments)

"""Averaged weights, and what happens when numbers are not finite."""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lfvit.errors import TrainingError
from lfvit.utils.validation import check_choice, check_whole

log = logging.getLogger(__name__)

ADVICE = (
    "Lower optimizer.lr, lengthen lr_scheduler.warmup_epochs, or set trainer.gradient_clip_val=1 "
    "or trainer.precision=32-true, and start from the last checkpoint, which is kept, with "
    "init_from="
)


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value of any tensor is NaN or infinite; waits for the device once."""
    norm = get_total_norm([t for t in tensors if t.numel()], float("inf"))
    return bool(norm.isfinite())


class NonFiniteGuard(Callback):
    """Stops the training, or skips the optimizer step, where a loss or gradient is not finite.

    A skipped step changes neither weights nor moments nor averaged weights. It counts in the
    learning-rate schedule and in ``global_step``. With precision=16-mixed the scaler skips steps
    whose gradients overflowed, as it always does; only losses are checked then.

    Several processes decide alike: a loss that is not finite makes all gradients of its backward
    pass NaN, and DistributedDataParallel adds these to those of every process.

    Args:
        action: "stop", or "skip", which counts skipped steps as ``train/skipped_steps``.
        max_skipped: with "skip", training stops after so many skipped steps in a row.

    Raises:
        ConfigError: an unknown action, or a limit below 1.
    """

    def __init__(self, action: str = "stop", max_skipped: int = 10) -> None:
        check_choice("callbacks.nonfinite.action", action, ("stop", "skip"))
        check_whole("callbacks.nonfinite.max_skipped", max_skipped, 1)
        self.action = action
        self.max_skipped = max_skipped
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
        if all_finite(gradients.values()):
            self.in_a_row = 0
            return
        bad = [(index, loss) for index, loss in losses if not loss.isfinite()]
        flag = torch.tensor(bool(bad), device=trainer.strategy.root_device)
        ranks = trainer.strategy.all_gather(flag).reshape(-1).nonzero().flatten().tolist()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and not ranks:
            return
        if bad:
            reason = f"the loss is {bad[0][1].item()}"
        elif ranks:
            reason = f"the loss of process {', '.join(map(str, ranks))} is not finite"
        else:
            broken = [name for name, gradient in gradients.items() if not all_finite([gradient])]
            reason = f"the loss is finite, but the gradient of {broken[0]} is not"
        batch = bad[0][0] if bad else trainer.fit_loop.batch_idx
        reason += f" at epoch {trainer.current_epoch}, batch {batch}"
        reason += f" (optimizer step {trainer.global_step})"
        if self.action == "stop":
            raise TrainingError(f"{reason}. {ADVICE}")
        self.in_a_row += 1
        if self.in_a_row > self.max_skipped:
            raise TrainingError(f"{reason} after {self.max_skipped} skipped steps. {ADVICE}")
        self.skipped += 1
        self.last_skipped = trainer.global_step
        if trainer.is_global_zero:
            log.warning("skipped a step, %d so far: %s", self.skipped, reason)
        if scaler is None:
            optimizer.zero_grad()  # optimizers leave weights without a gradient as they are

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.action == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_weights(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check_weights(pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_weights(pl_module)

    def _check_weights(self, module: L.LightningModule) -> None:
        """Finite gradients can still take a weight out of range, by a step that is too long."""
        if not all_finite(module.parameters()):
            broken = [n for n, weight in module.named_parameters() if not all_finite([weight])]
            raise TrainingError(
                f"{broken[0]} is not finite in epoch {module.current_epoch}. {ADVICE}"
            )


class EMA(EMAWeightAveraging):
    """Lightning's exponential moving average, without the optimizer steps that were skipped."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._guards = [c for c in trainer.callbacks if isinstance(c, NonFiniteGuard)]

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None and any(g.last_skipped == step_idx for g in self._guards):
            return False
        return super().should_update(step_idx, epoch_idx)

"""Checkpoints: written whole, and one to go on from however a training ended."""

import io
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from lfvit.models.zoo import LAST
from lfvit.utils.atomic_io import PARTIAL, rename, write_atomic
from lfvit.utils.signals import Stopped, StopSignals

PROGRESS = "progress"
"""Entry of a checkpoint: metrics and seconds so far, which a resumed run could not compute."""
RECENT = 60.0  # seconds: how old a checkpoint may be when a validation starts


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's, with a sync before the rename and one message where writing fails."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), buffer.getbuffer())


def stopped_early(trainer: L.Trainer) -> bool:
    """Whether a callback for early stopping has ended the training, as its config says."""
    callbacks = trainer.early_stopping_callbacks
    return any(c.stopping_reason_message is not None for c in callbacks)


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after every epoch and within it, and stops the training at a signal.

    A checkpoint is written at the end of a step, and renamed to last.ckpt when the step's rows of
    the log are written too: neither is ever ahead of the other.

    Lightning would go on from a checkpoint between the last step of an epoch and the end of its
    validation without that validation. So none is written there, but one before that step.

    Args:
        dirpath: folder of last.ckpt; None saves nothing, and still stops.
        every_n_minutes: age at which it is replaced, at the end of a step; None: not by time.
        every_n_steps: optimizer steps after which it is replaced; None: not by steps.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_minutes: float | None = 10,
        every_n_steps: int | None = None,
    ) -> None:
        self.path = None if dirpath is None else Path(dirpath) / LAST
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self.signals = StopSignals()  # receives nothing until `build_trainer` sets another
        self.progress: dict[str, Any] = {"metrics": {}, "seconds": 0.0, "ended_early": False}
        self._started = self._saved = time.monotonic()
        self._pending = False  # whether a written checkpoint waits for its rename
        self._signal = 0  # for which all processes have agreed to stop

    @property
    def seconds(self) -> float:
        """Duration of the training, including what was trained before it was resumed."""
        return float(self.progress["seconds"]) + time.monotonic() - self._started

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.get("callbacks", {}).pop("Timer", None)  # trainer.max_time is that of one start
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        checkpoint[PROGRESS] = {
            "metrics": {**self.progress["metrics"], **metrics},
            "seconds": self.seconds,
            "ended_early": stopped_early(trainer),
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.progress |= checkpoint.get(PROGRESS, {})
        trainer.should_stop = self.progress["ended_early"]

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._started = self._saved = time.monotonic()
        self.signals.waiting = True
        self.signals.install()

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._publish(trainer)
        self._stop_if_requested(trainer)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.on_train_epoch_start(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._publish(trainer)
        if self._signal:
            raise self._stopped(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        done, total = index + 1, trainer.num_training_batches
        if done % trainer.accumulate_grad_batches and done != total:
            return  # gradients are not saved
        due = self._is_due(trainer, done) or self._ends(trainer)
        wishes = (self.signals.requested or 0, due)
        if trainer.world_size > 1:  # all processes stop and save at the same step
            tensor = torch.tensor(wishes, device=trainer.strategy.root_device)
            wishes = tuple(trainer.strategy.reduce(tensor, reduce_op="max").tolist())
        self._signal, due = wishes
        validates = done == total or done % (trainer.val_check_batch or total) == 0
        if (self._signal or due) and not validates:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._stop_if_requested(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.completed == trainer.num_training_batches:  # not where a limit ends it before
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._publish(trainer)
        self.signals.waiting = False

    def on_exception(self, trainer: L.Trainer, *_: Any) -> None:
        self.signals.waiting = False
        # Lightning does so for the active loop only: loader processes would outlast a validation
        trainer.fit_loop.teardown()

    def _is_due(self, trainer: L.Trainer, done: int) -> bool:
        """Whether it is time for a checkpoint, after `done` batches of an epoch."""
        age = time.monotonic() - self._saved
        by_steps = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        by_time = self.every_n_minutes is not None and age >= 60 * self.every_n_minutes
        left = trainer.num_training_batches - done
        return (
            bool(by_steps)
            or by_time
            or (0 < left <= trainer.accumulate_grad_batches and age > RECENT)
        )

    def _ends(self, trainer: L.Trainer) -> bool:
        """Whether a limit or a callback ends the training after this step."""
        stop = trainer.should_stop and trainer.fit_loop._can_stop_early
        return stop or trainer.global_step == trainer.max_steps

    def _save(self, trainer: L.Trainer) -> None:
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.path is not None and not dry:
            trainer.save_checkpoint(self.path.with_name(LAST + PARTIAL), weights_only=False)
            self._saved, self._pending = time.monotonic(), True

    def _publish(self, trainer: L.Trainer) -> None:
        """Rename the checkpoint that was written to last.ckpt."""
        if self.path is not None and self._pending and trainer.is_global_zero:
            rename(self.path.with_name(LAST + PARTIAL), self.path)
        self._pending = False

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        """Between steps: if all processes have agreed, or there is only one."""
        if self._signal or (self.signals.requested is not None and trainer.world_size == 1):
            raise self._stopped(trainer)

    def _stopped(self, trainer: L.Trainer) -> Stopped:
        exists = self.path is not None and self.path.exists()
        path = shlex.quote(f"ckpt_path={self.path}")
        hint = f"; to continue, repeat the command with {path}" if exists else ""
        environment = getattr(trainer.strategy, "cluster_environment", None)
        child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        # Lightning ends the main process if one that it started ends with another status than 0
        signum = self._signal or self.signals.requested or signal.SIGTERM
        return Stopped(signum, hint, 0 if child else None)

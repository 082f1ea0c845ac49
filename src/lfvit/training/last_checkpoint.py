"""last.ckpt: from where a training goes on, whatever ended it."""

import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint

from lfvit.utils.atomic_io import PARTIAL, rename
from lfvit.utils.signals import Stopped, StopSignals
from lfvit.utils.validation import check_range, check_whole

LAST = "last.ckpt"
SO_FAR = "so_far"
"""The entry of a checkpoint with what a resumed run could not compute again."""
RECENT = 60.0  # seconds: how old a checkpoint may be when a validation starts


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt at the end of every epoch and within it, and stops where a signal says so.

    A checkpoint is written at the end of a step but takes the place of the last one only when what
    the step logs is written too: neither is ever ahead of the other.

    No checkpoint is written between the last step of an epoch and the end of its validation, from
    where Lightning would go on without the validation. One is written before that step.

    Args:
        dirpath: where last.ckpt lies; None saves nothing, and still stops.
        every_n_minutes: how old it gets at most, up to the end of a step; None: not by time.
        every_n_steps: after so many optimizer steps; None: not by steps.

    Raises:
        ConfigError: an interval that cannot be.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_minutes: float | None = 10,
        every_n_steps: int | None = None,
    ) -> None:
        if every_n_minutes is not None:
            check_range("callbacks.last.every_n_minutes", every_n_minutes, 0)
        if every_n_steps is not None:
            check_whole("callbacks.last.every_n_steps", every_n_steps, 1)
        self.path = None if dirpath is None else Path(dirpath) / LAST
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self.stop = StopSignals()  # of nobody, until `build_trainer` gives it another
        self.so_far: dict[str, Any] = {"metrics": {}, "seconds": 0.0, "ended_early": False}
        self._started = self._saved = time.monotonic()
        self._complete = False  # whether a checkpoint waits
        self._stopping = 0  # the signal that all processes have agreed to follow

    @property
    def seconds(self) -> float:
        """How long the training has taken, with what was trained before it was resumed."""
        return float(self.so_far["seconds"]) + time.monotonic() - self._started

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        checkpoint[SO_FAR] = {
            "metrics": {**self.so_far["metrics"], **metrics},
            "seconds": self.seconds,
            "ended_early": trainer.should_stop,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.so_far |= checkpoint.get(SO_FAR, {})
        trainer.should_stop = self.so_far["ended_early"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._saved = time.monotonic()
        self.stop.waiting = True
        self.stop.install()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._replace(trainer)
        self._follow(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._replace(trainer)
        if self._stopping:
            raise self._stopped(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        done, total = index + 1, trainer.num_training_batches
        if done % trainer.accumulate_grad_batches and done != total:
            return  # gradients are not saved
        self._stopping, due = self._agreed(
            trainer, self.stop.requested or 0, self._due(trainer, done)
        )
        validates = done == total or done % (trainer.val_check_batch or total) == 0
        if (self._stopping or due) and not validates:
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._replace(trainer)
        self._follow(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._follow(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._replace(trainer)
        self.stop.waiting = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.stop.waiting = False
        # Lightning does so for the loop that is active: loader processes would outlast a validation
        trainer.fit_loop.teardown()

    def _due(self, trainer: L.Trainer, done: int) -> bool:
        """Whether it is time for a checkpoint, after so many batches of an epoch."""
        age = time.monotonic() - self._saved
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        by_time = self.every_n_minutes is not None and age >= 60 * self.every_n_minutes
        left = trainer.num_training_batches - done
        last_chance = 0 < left <= trainer.accumulate_grad_batches and age > RECENT
        return by_steps or by_time or last_chance

    def _agreed(self, trainer: L.Trainer, *wishes: int) -> tuple[int, ...]:
        """The strongest wish of all processes; they stop and save at the same step."""
        if trainer.world_size == 1:
            return wishes
        tensor = torch.tensor(wishes, device=trainer.strategy.root_device)
        return tuple(trainer.strategy.reduce(tensor, reduce_op="max").tolist())

    def _follow(self, trainer: L.Trainer) -> None:
        """Stop between steps: where all have agreed to, or there is nobody to agree with."""
        if self._stopping or (self.stop.requested is not None and trainer.world_size == 1):
            raise self._stopped(trainer)

    def _stopped(self, trainer: L.Trainer) -> Stopped:
        found = self.path is not None and self.path.exists()
        hint = f"; to continue, repeat the command with ckpt_path={self.path}" if found else ""
        environment = getattr(trainer.strategy, "cluster_environment", None)
        child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        return Stopped(self._stopping or self.stop.requested or signal.SIGTERM, hint, quiet=child)

    def _save(self, trainer: L.Trainer) -> None:
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.path is not None and not dry:
            trainer.save_checkpoint(self._waiting, weights_only=False)
            self._saved, self._complete = time.monotonic(), True

    def _replace(self, trainer: L.Trainer) -> None:
        """The checkpoint that waits becomes last.ckpt."""
        if self.path is not None and self._complete and trainer.is_global_zero:
            rename(self._waiting, self.path)
        self._complete = False

    @property
    def _waiting(self) -> Path:
        assert self.path is not None
        return self.path.with_name(LAST + PARTIAL)

"""A loss or a gradient that is not finite: stop, or skip the step, and keep the batch to look at.

Several processes decide alike without talking to each other: a loss that is not finite makes all
gradients of its backward pass NaN, DistributedDataParallel adds these to everyone's, and every
process looks at the same sum. One reduction over the gradients and one wait for the device per
optimizer step is all that this costs while the numbers are good.
"""

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lfvit.data.batches import Batch, image_name
from lfvit.data.sampling import TrainSampler
from lfvit.errors import TrainingError
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import all_reduce_sum
from lfvit.utils.validation import check_choice, check_whole

log = logging.getLogger(__name__)

ACTIONS = ("stop", "skip")
FOLDER = "nonfinite"  # in the run directory
KEPT = 3  # batches that a run keeps at most before the one it stops at
REMEMBERED = ("skipped", "in_a_row", "last_skipped")  # in checkpoints
ADVICE = (
    "Lower schedule.lr, lengthen schedule.warmup_epochs, or set trainer.gradient_clip_val=1 or "
    "trainer.precision=32-true, and start from the last checkpoint, which is kept, with init_from="
)


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value of any tensor is NaN or infinite; one wait for the device.

    Of sharded tensors every process looks at its own part, and all of them get one answer.
    """
    found = list(tensors)
    parts = [t.to_local() if isinstance(t, DTensor) else t for t in found]
    bad = ~get_total_norm([t for t in parts if t.numel()], float("inf")).isfinite()
    if any(isinstance(t, DTensor) for t in found):
        bad = all_reduce_sum(bad.float().to(parts[0].device))
    return not bad


class Seen(NamedTuple):
    """A batch whose gradients are part of the coming step, and its loss."""

    number: int
    batch: Batch
    loss: Tensor


class NonFiniteGuard(Callback):
    """Looks at the gradients before every optimizer step.

    A skipped step is no step of the optimizer, of its moments and of the averaged weights. It is
    one of the schedule and of ``global_step``: the learning rate and the end of training stay where
    they are. With precision=16-mixed the scaler leaves out steps whose gradients overflowed by
    itself, as it always does; only losses are looked at then.

    Args:
        action: "stop" raises, "skip" leaves the step out, counts it (``train/skipped_steps``) and
            goes on.
        limit: how many steps in a row may be skipped before training stops all the same.
    """

    def __init__(self, action: str = "stop", limit: int = 10) -> None:
        check_choice("on_nonfinite", action, ACTIONS)
        check_whole("max_skipped", limit, 1)
        self.action = action
        self.limit = limit
        self.skipped = 0  # steps of this training
        self.in_a_row = 0
        self.last_skipped = -1  # its global_step
        self._coming: tuple[int, Batch] | None = None
        self._seen: list[Seen] = []

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in REMEMBERED}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        for name in REMEMBERED:
            setattr(self, name, state_dict.get(name, getattr(self, name)))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._coming = batch_idx, batch

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        assert self._coming is not None
        self._seen.append(Seen(*self._coming, loss.detach()))
        finite = loss.detach().isfinite()
        # an infinite loss can have finite gradients, which would tell the other processes nothing
        loss.register_hook(lambda grad: torch.where(finite, grad, torch.nan))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        seen, self._seen = self._seen, []
        if all_finite(p.grad for p in pl_module.parameters() if p.grad is not None):
            self.in_a_row = 0
            return
        # all processes are here, or none: now they can afford to talk
        bad = [one for one in seen if not one.loss.isfinite()]
        ranks = _ranks_with(bool(bad), trainer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and not ranks:
            return
        broken = _broken_gradients(pl_module)  # of sharded ones, all processes have to ask
        what = _describe(bad, ranks, broken)
        found = bad or seen[-1:]  # of an accumulated step with finite losses, the last batch
        step = f", step {found[0].number}" if found else ""
        where = f"epoch {trainer.current_epoch}{step} (optimizer step {trainer.global_step})"
        self.in_a_row += 1
        stop = self.action == "stop" or self.in_a_row > self.limit
        place = "the batches of earlier ones are kept"
        if stop or self.skipped < KEPT:
            # where no loss was bad, nobody knows whose images made a gradient overflow
            about = {"what": what, "gradients_not_finite": broken}
            place = _keep(bad if ranks else found, about, trainer, pl_module)
        if stop:
            tried = f" after {self.limit} skipped steps in a row (max_skipped={self.limit})"
            tried = "" if self.action == "stop" else tried
            raise TrainingError(f"{what} at {where}{tried}; {place}. {ADVICE}")
        self.skipped += 1
        self.last_skipped = trainer.global_step
        if trainer.is_global_zero:
            log.warning("skipped a step, %d so far: %s at %s; %s", self.skipped, what, where, place)
        if scaler is None:
            optimizer.zero_grad()  # AdamW leaves weights without a gradient as they are

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # what is still here waits for the rest of an accumulated step; only bad ones take memory
        self._seen = [one for one in self._seen if not one.loss.isfinite()]
        self._coming = None
        if self.action == "skip":
            pl_module.log("train/skipped_steps", float(self.skipped))


class Averaging(EMAWeightAveraging):
    """Lightning's, but a step that was skipped is none for the average either."""

    def __init__(self, decay: float, guard: NonFiniteGuard) -> None:
        super().__init__(decay=decay)
        self.guard = guard

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None and step_idx == self.guard.last_skipped:
            return False
        return super().should_update(step_idx, epoch_idx)


def _ranks_with(bad: bool, trainer: L.Trainer) -> list[int]:
    """The processes whose loss was not finite; all of them have to ask."""
    flag = torch.tensor(int(bad), device=trainer.strategy.root_device)
    flags = trainer.strategy.all_gather(flag).reshape(-1)
    return flags.nonzero().flatten().tolist()


def _describe(bad: list[Seen], ranks: list[int], broken: list[str]) -> str:
    if bad:
        return f"the loss is {bad[0].loss.item()}"
    if ranks:
        return f"the loss of process {', '.join(map(str, ranks))} is not finite"
    return f"the loss is finite, but the gradient of {broken[0]} and {len(broken) - 1} more is not"


def _broken_gradients(module: L.LightningModule) -> list[str]:
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


# --- what is kept -------------------------------------------------------------------------------


def _keep(
    found: list[Seen], about: dict[str, Any], trainer: L.Trainer, module: L.LightningModule
) -> str:
    """Write batches and what is known about them; returns where, in words."""
    name = f"epoch_{trainer.current_epoch}_step_{trainer.global_step}"
    folder = Path(trainer.default_root_dir) / FOLDER / name
    try:
        for one in found:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"rank_{trainer.global_rank}_batch_{one.number}.safetensors"
            save_file(_contents(one.batch), path)
            write_json(path.with_suffix(".json"), {**about, **_about(one, trainer, module)})
    except OSError as error:  # a full disk should not hide what happened
        return f"its batch could not be saved in {folder} ({error})"
    return f"its batch is saved in {folder}"


def _contents(batch: Batch) -> dict[str, Tensor]:
    """A batch as the model was given it, by the names of its fields."""
    maps = {} if batch.label_maps is None else batch.label_maps._asdict()
    fields = {**batch._asdict(), **{f"label_maps.{key}": value for key, value in maps.items()}}
    return {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in fields.items()
        if isinstance(value, Tensor)
    }


def _about(one: Seen, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    return {
        "epoch": trainer.current_epoch,
        "batch": one.number,
        "optimizer_step": trainer.global_step,
        "rank": trainer.global_rank,
        "seed": getattr(module, "seed", None),
        "precision": str(trainer.precision),
        "losses": {key: str(value) for key, value in logged.items() if key.startswith("train/")},
        "token_box": one.batch.token_box,
        "images": _images(trainer, one.number),
    }


def _images(trainer: L.Trainer, number: int) -> list[dict[str, Any]]:
    """Which images a batch was drawn from, and the seeds of their augmentation; unreadable ones
    among them are missing in the batch."""
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    source: Any = getattr(trainer.datamodule, "train_images", None)  # type: ignore[attr-defined]
    if not isinstance(sampler, TrainSampler) or source is None:
        return []
    size = loader.batch_size
    draws = islice(sampler.draws(), number * size, (number + 1) * size)
    return [
        {"index": draw.image, "seed": draw.seed, "name": image_name(source, draw.image)}
        for draw in draws
    ]

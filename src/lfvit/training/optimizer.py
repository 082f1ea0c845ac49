"""AdamW and its learning rate."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from torch import nn

from lfvit.models.reduction.registry import Reducer
from lfvit.training.schedule import Schedule


def adamw_and_cosine(
    model: nn.Module, schedule: Schedule, *, steps: float, images_per_step: int
) -> OptimizerLRScheduler:
    """AdamW and a cosine, stepped every optimizer step, as Lightning takes them.

    Args:
        model: what learns; it and its reducers say which weights do not decay.
        schedule: the recipe.
        steps: of the whole training.
        images_per_step: of all processes, see `Schedule.peak_lr`.
    """
    peak, steps_per_epoch = schedule.peak_lr(images_per_step), max(steps / schedule.epochs, 1e-9)
    keep: set[str] = getattr(model, "no_weight_decay", set)()
    for name, module in model.named_modules():
        if isinstance(module, Reducer):
            keep = keep | {f"{name}.{parameter}" for parameter in module.no_weight_decay()}
    groups = param_groups_weight_decay(model, schedule.weight_decay, no_weight_decay_list=keep)
    optimizer = torch.optim.AdamW(groups, lr=peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule.lr_at(step / steps_per_epoch, peak) / peak
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }

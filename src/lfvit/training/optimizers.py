"""Optimizer and learning-rate scheduler from the config's partial objects."""

import inspect
from functools import partial
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfigType
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from lfvit.errors import ConfigError
from lfvit.models.reducers import Reducer


def build_optimizer(
    model: nn.Module,
    optimizer: partial[Optimizer],
    lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    backbone_lr: float = 1.0,
) -> Optimizer:
    """The optimizer of all trainable weights; only matrices decay.

    Position embeddings, class token, biases and norms have weight decay 0, as in timm, and so have
    the weights that the model or its reducers name in ``no_weight_decay``.

    Args:
        model: what is trained.
        optimizer: class and arguments, such as ``partial(AdamW, lr=5e-4, weight_decay=0.05)``.
        lr_scale: factor on ``lr``.
        layer_decay: timm's factor on the learning rate from one layer to the one before. The head
            and what is new in a two-pass model learn with the full rate, the last block with
            `layer_decay` times that, and so on down to the patch and position embeddings.
        backbone_lr: factor on the learning rate of all weights but those of a reducer. Their
            groups have ``backbone=True``. Without a reducer that has weights it has no effect.

    Raises:
        ConfigError: an argument that the optimizer does not take.
    """
    settings = dict(optimizer.keywords)
    no_decay: set[str] = getattr(model, "no_weight_decay", set)()
    new: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Reducer):
            no_decay = no_decay | {f"{name}.{weight}" for weight in module.no_weight_decay()}
            new |= {id(parameter) for parameter in module.parameters()}
    weight_decay = settings.get("weight_decay", 0.0)
    if layer_decay == 1:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=no_decay)
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=no_decay, layer_decay=layer_decay
        )
    if backbone_lr != 1 and new:
        split = [
            {
                **group,
                "params": [p for p in group["params"] if (id(p) not in new) == backbone],
                "lr_scale": group.get("lr_scale", 1.0) * (backbone_lr if backbone else 1.0),
                "backbone": backbone,
            }
            for group in groups
            for backbone in (True, False)
        ]
        groups = [group for group in split if group["params"]]
    try:
        if "lr" in settings:
            settings["lr"] *= lr_scale
        built = optimizer.func(groups, **settings)
        for group in built.param_groups:
            group["lr"] = group["lr"] * group.get("lr_scale", 1.0)
        return built
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error


def build_lr_scheduler(
    optimizer: Optimizer, lr_scheduler: partial[Any], max_epochs: int, steps: float
) -> LRSchedulerConfigType:
    """The scheduler, as Lightning takes it.

    timm's factory is told to step after every optimizer step. A scheduler of PyTorch steps after
    every epoch, or, if it takes ``total_steps`` (OneCycleLR), after every optimizer step.

    Args:
        optimizer: built.
        lr_scheduler: class or factory, and arguments.
        max_epochs: of the training.
        steps: optimizer steps of the training.

    Raises:
        ConfigError: an argument that the scheduler does not take, or a value it refuses.
    """
    settings: dict[str, Any] = dict(lr_scheduler.keywords)
    names = inspect.signature(lr_scheduler.func).parameters
    interval = "step" if {"updates_per_epoch", "total_steps"} & set(names) else "epoch"
    if "updates_per_epoch" in names:  # timm.scheduler.create_scheduler_v2
        apart = settings.get("warmup_epochs", 0) if settings.get("warmup_prefix") else 0
        apart += settings.get("cooldown_epochs", 0)
        settings["num_epochs"] = max(max_epochs - apart, 1e-9)
        settings["updates_per_epoch"] = steps / max_epochs
        settings["step_on_epochs"] = False
        for group in optimizer.param_groups:  # timm multiplies by lr_scale in every step
            group["lr"] = group["lr"] / group.get("lr_scale", 1.0)
    if "total_steps" in names:
        settings.setdefault("total_steps", int(steps))
    if "max_lr" in names:
        settings.setdefault("max_lr", [group["lr"] for group in optimizer.param_groups])
    try:
        scheduler = lr_scheduler.func(optimizer, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"lr_scheduler: {error}") from error
    if isinstance(scheduler, tuple):  # with the number of epochs
        scheduler = scheduler[0]
    return {"scheduler": scheduler, "interval": interval, "monitor": "val/loss"}

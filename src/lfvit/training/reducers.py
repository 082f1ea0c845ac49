"""Weights of token reducers: those with a loss of their own, and those that nothing depends on."""

from typing import Any

import torch
from torch import nn

from lfvit.errors import ConfigError
from lfvit.models import forward_passes, num_passes
from lfvit.models.reducers import Reducer
from lfvit.models.reduction import ReducedBlocks, reads_patches
from lfvit.utils.seeding import seeded


def learned_reducer(model: Any, compiled: bool = False) -> Reducer | None:
    """The model's reducer, if it has a loss of its own that the training step must add.

    Raises:
        ConfigError: the training step cannot add it to this model, or to a compiled one.
    """
    blocks = getattr(model, "blocks", None)
    reducer = blocks.reducer if isinstance(blocks, ReducedBlocks) else None
    reducer = getattr(model, "reducer", reducer)
    if reducer is None or not reducer.learned:
        return None
    if num_passes(model) > 1 or reads_patches(model):
        raise ConfigError(
            f"{type(reducer).__name__} learns from a loss of its own, which is only computed for "
            "method=vit on a backbone whose head reads the class token alone"
        )
    if compiled:
        raise ConfigError(
            "compile=true does not reach the losses of a learned reducer; use compile=false"
        )
    return reducer


def freeze_unused_weights(model: nn.Module, image_size: int) -> list[str]:
    """Freeze the weights of the model's reducer that the logits do not depend on.

    A reducer that removes nothing (removed=0, keep_rate=1, shares that round to no token) has such.
    They would not change anyway, but DDP would wait for their gradients.

    Args:
        model: in training mode.
        image_size: side of the images in pixels.

    Returns:
        The names of the weights.
    """
    reducers = [module for module in model.modules() if isinstance(module, Reducer)]
    weights = {id(weight) for reducer in reducers for weight in reducer.parameters()}
    named = {name: w for name, w in model.named_parameters() if id(w) in weights}
    if not named:
        return []
    model.eval()  # except for the reducers: no statistics, no randomness
    for reducer in reducers:
        reducer.train()
    phases: list[dict[str, Any]] = [{}] if num_passes(model) == 1 else [{"selector": "none"}, {}]
    with seeded(0, devices=False):
        images = torch.randn(1, 3, image_size, image_size)
        outputs = [forward_passes(model, images, **options) for options in phases]
    total = torch.stack([logits.sum() for output in outputs for logits in output.logits]).sum()
    model.train()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    unused = [name for name, grad in zip(named, gradients, strict=True) if grad is None]
    for name in unused:
        named[name].requires_grad_(False)
    return unused

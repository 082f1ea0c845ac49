"""Weights of a reducer that the configured reduction never uses."""

from typing import Any

import torch
from torch import Tensor, nn

from lfvit.models.reduction.registry import Reducer
from lfvit.models.two_pass import TwoPassViT
from lfvit.utils.seeding import seeded


def freeze_unreached(model: nn.Module, image_size: int) -> list[str]:
    """Freeze the weights of the model's reducer that no answer depends on.

    A reducer that removes nothing (removed=0, keep_rate=1, shares that round to no token) has such.
    They would stay as they are anyway; DDP, which waits for every gradient, would wait for theirs.

    Args:
        model: one-pass or two-pass, in training mode.
        image_size: side of the images in pixels.

    Returns:
        The names of the weights.
    """
    reducers = [module for module in model.modules() if isinstance(module, Reducer)]
    own = {id(weight) for reducer in reducers for weight in reducer.parameters()}
    named = [(name, weight) for name, weight in model.named_parameters() if id(weight) in own]
    if not named:
        return []
    model.eval()  # but for the reducers, no statistics and no chance
    for reducer in reducers:
        reducer.train()
    with seeded(0, devices=False):
        answer = _answer(model, torch.randn(1, 3, image_size, image_size))
    model.train()
    found = torch.autograd.grad(answer, [weight for _, weight in named], allow_unused=True)
    unreached = {name: w for (name, w), grad in zip(named, found, strict=True) if grad is None}
    for weight in unreached.values():
        weight.requires_grad_(False)
    return list(unreached)


def _answer(model: Any, images: Tensor) -> Tensor:
    if not isinstance(model, TwoPassViT):
        return model(images).sum()
    phases = [model(images, selector=selector) for selector in ("none", None)]
    return torch.stack([out.first_logits.sum() + out.second_logits.sum() for out in phases]).sum()

"""Reducers that learn from a loss of their own."""

from typing import Any

from lfvit.errors import ConfigError
from lfvit.models.reduction.patch import ReducedBlocks, reads_patches
from lfvit.models.two_pass import TwoPassViT


def refuse_unlearnable(model: Any, compile_passes: bool) -> bool:
    """Whether a model's reducer has a loss of its own, which the training step then computes.

    Raises:
        ConfigError: it has one, and the training step would not reach it.
    """
    blocks = getattr(model, "blocks", None)
    reducer = blocks.reducer if isinstance(blocks, ReducedBlocks) else None
    if isinstance(model, TwoPassViT):
        reducer = model.reducer
    if reducer is None or not reducer.learned:
        return False
    if isinstance(model, TwoPassViT) or reads_patches(model):
        raise ConfigError(
            f"{type(reducer).__name__} learns from a loss of its own, which is only computed for "
            "method=vit on a backbone whose head reads the class token alone"
        )
    if compile_passes:
        raise ConfigError(
            "compile=true does not reach the losses of a learned reducer; use compile=false"
        )
    return True

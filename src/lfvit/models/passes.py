"""A model has passes: a plain ViT one, LF-ViT and CF-ViT two. Callers loop over ``logits``."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lfvit.models.lv_vit import AUX_SHARE, DenseLogits, LVViT
from lfvit.models.selectors import Selection


class ModelOutput(NamedTuple):
    """All passes on every image.

    logits: one (B, C) per pass. selection: which cells the second pass sees at full resolution;
    None for one pass. dense: logits of the last pass's tokens, with an auxiliary head (LV-ViT).
    class_logits: of the class token alone, one (B, C) per pass; empty where nothing else is read.
    """

    logits: list[Tensor]
    selection: Selection | None = None
    dense: DenseLogits | None = None
    class_logits: Sequence[Tensor] = ()

    @property
    def first_logits(self) -> Tensor:
        return self.logits[0]

    @property
    def second_logits(self) -> Tensor:
        return self.logits[1]


class EarlyExitOutput(NamedTuple):
    """Early exit: each image's logits come from the pass at which it stopped.

    logits: (B, C).
    exited: (B,) bool, whether the image stopped after the first pass.
    confidence: (B,) float32, largest softmax probability of the first pass.
    selection: cells the second pass sees, or would have seen; None for one pass.
    """

    logits: Tensor
    exited: Tensor
    confidence: Tensor
    selection: Selection | None


def confidence_of(logits: Tensor) -> Tensor:
    """Largest softmax probability: (B, C) -> (B,) float32."""
    return logits.float().softmax(dim=1).amax(dim=1)


def num_passes(model: nn.Module) -> int:
    """Number of passes: 1 for every module that has no ``num_passes`` attribute."""
    return cast(int, getattr(model, "num_passes", 1))


def forward_passes(
    model: nn.Module, images: Tensor, coarse_images: Tensor | None = None, **options: Any
) -> ModelOutput:
    """All passes on every image, for any model.

    Args:
        model: of `lfvit.create_model`, or any module from images to logits.
        images: (B, 3, S, S), normalised.
        coarse_images: (B, 3, S/2, S/2) if already computed, see `lfvit.models.tokens.downsample`;
            unused by one pass.
        **options: of the model's forward, such as ``selector`` or ``mix``.
    """
    if num_passes(model) > 1:
        return cast(ModelOutput, model(images, coarse_images, **options))
    if isinstance(model, LVViT):
        dense = model(images, **options, dense=True)
        return ModelOutput([dense.combine(AUX_SHARE)], dense=dense)
    return ModelOutput([model(images, **options)])


@torch.no_grad()
def early_exit(
    model: nn.Module, images: Tensor, threshold: float, **options: Any
) -> EarlyExitOutput:
    """Run as many passes as each image needs, see `TwoPassViT.infer`.

    A model of one pass, or any module from images to logits, stops after it whatever the options.
    """
    if num_passes(model) > 1:
        return cast(Any, model).infer(images, threshold, **options)
    logits = model(images)
    confidence = confidence_of(logits)
    return EarlyExitOutput(logits, torch.ones_like(confidence, dtype=torch.bool), confidence, None)


def compiled(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A pass under `torch.compile` with these options.

    CUDA graphs write into the same memory every time, so what they return is copied: the next call,
    of this pass or another, would overwrite it.
    """
    compiled_run = torch.compile(run, **options)
    if options.get("mode") not in ("reduce-overhead", "max-autotune"):
        return compiled_run
    return lambda *args: tree_map_only(Tensor, Tensor.clone, compiled_run(*args))

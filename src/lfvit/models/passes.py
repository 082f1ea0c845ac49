"""A model has passes: a plain ViT one, LF-ViT and CF-ViT two. Callers loop over ``logits``."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lfvit.errors import ConfigError
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
    exited: (B,) bool, whether the image stopped before the last pass.
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


class MultiPassViT(nn.Module):
    """A model of several passes, each of which may be the last.

    Attributes:
        num_passes: P.
        image_size: S in pixels.
    """

    num_passes: int
    image_size: int

    def run_pass(self, index: int, images: Tensor, before: Any = None) -> tuple[Tensor, Any]:
        """One pass on images (B, 3, S, S).

        Args:
            before: what the pass before handed on; to the first, the images at half resolution if
                they are already computed.

        Returns:
            Logits (B, C), and what the next pass needs, tensors with B rows; from a pass with a
            ``selection`` among it.
        """
        raise NotImplementedError

    @torch.no_grad()
    def infer(
        self,
        images: Tensor,
        threshold: float | Sequence[float],
        coarse_images: Tensor | None = None,
        *,
        bucket: int = 1,
    ) -> EarlyExitOutput:
        """Early exit: an image stops at the first pass whose confidence reaches the threshold.

        Works for any batch, including one image, none left and all left. Without gradients.

        Args:
            images: (B, 3, S, S), normalised.
            threshold: eta of all passes but the last, or one for each; at 0 every image stops after
                the first pass, above 1 none.
            coarse_images: (B, 3, S/2, S/2) if already computed, see `downsample`.
            bucket: later passes run on a multiple of so many images, the last one repeated, so that
                compiled passes meet few sizes.

        Raises:
            ConfigError: another number of thresholds, or one that is below 0 or no number.
        """
        single = isinstance(threshold, int | float)
        etas: Any = [threshold] * (self.num_passes - 1) if single else threshold
        if len(etas) != self.num_passes - 1 or not all(eta >= 0 for eta in etas):
            raise ConfigError(
                f"threshold={threshold} is not valid: one number from 0 on, or a list of "
                f"{self.num_passes - 1}"
            )
        logits, handed_on = self.run_pass(0, images, coarse_images)
        selection = getattr(handed_on, "selection", None)
        answers, first = logits, confidence_of(logits)  # (B, C), (B,)
        confidence, rest = first, torch.arange(len(images), device=images.device)
        for index, eta in enumerate(etas, start=1):
            stay = (~(confidence >= eta)).nonzero()[:, 0]  # (R,), this waits for the device
            rest = rest[stay]
            if not len(rest):
                break
            rows = torch.cat(
                [stay, stay[-1:].expand(-len(stay) % bucket)]
            )  # (R',), R' % bucket = 0
            if len(rows) != len(confidence) or len(rows) > len(stay):  # else all of them, in order
                images, handed_on = _rows(rows, (images, handed_on))
            logits, handed_on = self.run_pass(index, images, handed_on)
            logits = logits[: len(rest)]
            answers = answers.index_copy(0, rest, logits.to(answers.dtype))
            if index < len(etas):
                confidence = confidence_of(logits)
                images, handed_on = _rows(slice(len(rest)), (images, handed_on))
        exited = torch.ones_like(first, dtype=torch.bool)
        exited[rest] = False  # they ran the last pass
        return EarlyExitOutput(answers, exited, first, selection)


def _rows(rows: Any, tensors: Any) -> Any:
    """Some rows of every tensor."""
    return tree_map_only(Tensor, lambda tensor: tensor[rows], tensors)


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
    """Run as many passes as each image needs, see `MultiPassViT.infer`.

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

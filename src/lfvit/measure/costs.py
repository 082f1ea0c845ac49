"""Multiply-accumulates (MACs) of one image, in closed form and as fvcore counts them.

The papers call this figure FLOPs. Both counters here agree to the last digit: products of matrices
and convolutions count one per multiply-accumulate, a LayerNorm counts 5 per element and a BatchNorm
2 (fvcore's conventions), an RMSNorm, additions, activations, constant factors, softmax and resizing
count nothing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.backbone import foreign_parts
from lfvit.models.lv_vit import ConvStem
from lfvit.models.passes import num_passes
from lfvit.models.reduction.patch import ReducedBlocks, reads_patches
from lfvit.models.reduction.registry import Reducer
from lfvit.models.resample import downsample
from lfvit.models.selection import Scores
from lfvit.models.two_pass import FirstPass, TwoPassViT

NORM_PER_ELEMENT = 5
BATCH_NORM_PER_ELEMENT = 2  # in evaluation: a factor and a shift


def count_macs(model: nn.Module, stage: str | None = None) -> float:
    """MACs of one image through a model of this project, in closed form.

    Args:
        model: a one-pass ViT of timm or a `TwoPassViT`.
        stage: "first" or "second" for one pass of a two-pass model; None for all of it. The second
            pass is counted on top of the first, not including it.

    Raises:
        ConfigError: unknown stage, a stage of a one-pass model, or a model it cannot count.
    """
    return float(sum(mac_parts(model, stage).values()))


def pass_macs(model: nn.Module) -> list[float]:
    """MACs of each pass by itself, for one image.

    Raises:
        ConfigError: as `count_macs`.
    """
    stages = ("first", "second") if num_passes(model) == 2 else (None,)
    return [count_macs(model, stage) for stage in stages]


def mac_parts(model: nn.Module, stage: str | None = None) -> dict[str, int]:
    """Where the MACs of `count_macs` go, in the order of the forward.

    Returns:
        Part -> MACs: "embed" (stem and patches), "reuse", "block 1" and so on, "head" (final norm
        and heads); of a two-pass model after "first " or "second ".

    Raises:
        ConfigError: as `count_macs`.
    """
    if stage not in (None, "first", "second"):
        raise ConfigError(f"stage={stage!r} is unknown; valid: first, second, None")
    if isinstance(model, TwoPassViT):
        passes = {"first": _first_pass, "second": _second_pass}
        return {
            f"{name} {part}": macs
            for name in (passes if stage is None else [stage])
            for part, macs in passes[name](model).items()
        }
    if stage is not None:
        raise ConfigError(f"stage={stage!r}: a {type(model).__name__} has one pass; use stage=None")
    foreign = ["another architecture"]
    if isinstance(model, VisionTransformer):
        foreign = list(foreign_parts(model))
    if foreign:
        raise ConfigError(
            f"cannot count this {type(model).__name__}, which has {'; '.join(foreign)}; use a "
            "plain ViT of timm or a model of lfvit.create_model"
        )
    return _one_pass(model)


def expected_gmacs(macs_first: float, macs_second: float, exit_fraction: float) -> float:
    """GMACs per image when the given fraction of images exits after the first pass."""
    return (macs_first + (1 - exit_fraction) * macs_second) / 1e9


def _one_pass(vit: Any) -> dict[str, int]:
    patches = vit.patch_embed.num_patches
    prefix = vit.num_prefix_tokens
    blocks, left = _blocks(vit.blocks, patches, prefix)
    if reads_patches(vit):
        left = patches
    embed = _embed(vit.patch_embed, vit.patch_embed.img_size[0], patches)
    # timm norms every token, then takes the class token
    head = _norm(vit.norm, left + prefix) + _norm(vit.fc_norm, 1) + _heads(vit, patches)
    return {"embed": embed + _norm(vit.norm_pre, patches + prefix), **blocks, "head": head}


def _first_pass(model: TwoPassViT) -> dict[str, int]:
    core, cells = model.backbone, model.grid**2
    reducer = model.reducer_of("first")
    blocks, left = _blocks(core.blocks, cells, core.prefix, reducer, model.gca_start)
    embed = _embed(core.patch_embed, model.image_size // 2, cells)
    head = _norm(core.norm, 1 + left) + _heads(core, cells)
    return {"embed": embed + _norm(core.norm_pre, core.prefix + cells), **blocks, "head": head}


def _second_pass(model: TwoPassViT) -> dict[str, int]:
    core, cells = model.backbone, model.grid**2
    kept = _kept_cells(model)
    patches = 4 * kept + (cells - kept if model.background else 0)
    embed = _embed(core.patch_embed, model.image_size, 4 * kept)
    reuse = 0
    if model.reuse is not None:
        inputs = cells + model.reuse.to_class_token
        linears = [m for m in model.reuse.mlp.modules() if isinstance(m, nn.Linear)]
        reuse = _norm(model.reuse.norm, inputs) + sum(_weights(m, inputs) for m in linears)
    blocks, left = _blocks(core.blocks, patches, core.prefix, model.reducer_of("second"))
    normed = 1 if core.aux_head is None else 1 + left
    return {
        "embed": embed + _norm(core.norm_pre, core.prefix + patches),
        "reuse": reuse,
        **blocks,
        "head": _norm(core.norm, normed) + _heads(core, patches),
    }


def _embed(patch_embed: Any, side: int, patches: int) -> int:
    """A convolutional stem on the whole image of this side, and the projection of some patches."""
    macs = _weights(patch_embed.proj, patches)
    if isinstance(patch_embed, ConvStem):
        pixels = (side // 2) ** 2
        for layer in patch_embed.children():
            if isinstance(layer, nn.BatchNorm2d):
                macs += BATCH_NORM_PER_ELEMENT * layer.num_features * pixels
            elif layer is not patch_embed.proj:
                macs += _weights(layer, pixels)
    return macs


def _heads(model: Any, patches: int) -> int:
    """Heads on single tokens, an auxiliary head on every patch token of the start."""
    single = _weights(model.head, 1) + _weights(getattr(model, "head_dist", None), 1)
    return single + _weights(getattr(model, "aux_head", None), patches)


def _kept_cells(model: TwoPassViT) -> int:
    """How many cells become fine: asked of the selector, so that a new one needs no edit here."""
    blank = torch.zeros(1, model.grid, model.grid)
    with torch.random.fork_rng(devices=[]):  # random selectors draw
        return model.select(Scores(blank, blank)).cells.shape[1]


def _blocks(
    blocks: Any,
    patches: int,
    prefix: int,
    reducer: Reducer | None = None,
    class_rows_from: int | None = None,
) -> tuple[dict[str, int], int]:
    """Each block on a sequence of prefix and patch tokens, and the patch tokens left at the end."""
    if isinstance(blocks, ReducedBlocks):
        blocks, reducer = blocks.each, blocks.reducer
    reducer = reducer or Reducer()
    macs, count = {}, patches
    for index, block in enumerate(blocks):
        extra = reducer.extra_macs(index, count, patches, prefix)
        attended, count = reducer.lengths(index, count, patches)
        rows = class_rows_from is not None and index >= class_rows_from
        macs[f"block {index + 1}"] = extra + _block(block, prefix + attended, prefix + count, rows)
    return macs, count


def _block(block: Any, attended: int, passed_on: int, class_row: bool) -> int:
    """A block with so many tokens in its attention and in its MLP."""
    attn = block.attn
    width = attn.num_heads * attn.head_dim
    macs = _norm(block.norm1, attended) + _norm(block.norm2, passed_on)
    macs += _weights(attn.qkv, attended) + _weights(attn.proj, attended)
    macs += _weights(block.mlp.fc1, passed_on) + _weights(block.mlp.fc2, passed_on)
    for norm in (attn.q_norm, attn.k_norm, attn.norm):
        macs += NORM_PER_ELEMENT * attended * width if isinstance(norm, nn.LayerNorm) else 0
    macs += 2 * attended * attended * width  # queries x keys, weights x values
    return macs + (attended * width if class_row else 0)  # one query x keys


def _weights(layer: Any, positions: int) -> int:
    """A linear layer or convolution applied at so many positions; nothing for an identity."""
    return layer.weight.numel() * positions if hasattr(layer, "weight") else 0


def _norm(layer: Any, tokens: int) -> int:
    if not isinstance(layer, nn.LayerNorm):
        return 0
    return NORM_PER_ELEMENT * math.prod(layer.normalized_shape) * tokens


# --- fvcore -------------------------------------------------------------------------------------


def trace_macs(model: nn.Module, image_size: int, stage: str | None = None) -> float:
    """MACs of one image as fvcore counts them on a traced run, fused attention off.

    The independent check of `count_macs`: the two agree exactly. Runs on the model's device.
    """
    images = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with _plain_attention(model), torch.no_grad():
        if not isinstance(model, TwoPassViT):
            return _trace(model, images)
        view = downsample(images)
        first = model.first_pass(images, view)
        selection = model.select(Scores(first.gca, first.last))

        def first_pass(view: Tensor) -> tuple[Tensor, ...]:
            return tuple(model.first_pass(images, view))

        def second_pass(images: Tensor, *tensors: Tensor) -> Tensor:
            return model.second_pass(images, FirstPass(*tensors), selection).logits

        total = 0.0
        if stage in (None, "first"):
            total += _trace(_Call(model, first_pass), view)
        if stage in (None, "second"):
            total += _trace(_Call(model, second_pass), images, *first)
        return total


class _Call(nn.Module):
    """A function of a model as a module with the model's weights, which is what fvcore traces."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _trace(call: nn.Module, *inputs: Tensor) -> float:
    analysis = FlopCountAnalysis(call.eval(), inputs)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return float(analysis.total())


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """For a while, fused attention off, which fvcore cannot see into, and evaluation mode on."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before, training = [layer.fused_attn for layer in layers], model.training
    model.eval()
    try:
        for layer in layers:
            layer.fused_attn = False  # type: ignore[misc]
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused  # type: ignore[misc]
        model.train(training)

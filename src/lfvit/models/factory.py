"""`create_model`: the one place where models are built."""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lfvit.errors import ConfigError
from lfvit.models.backbone import Backbone
from lfvit.models.cascade import CascadeViT
from lfvit.models.lv_vit import LVViT
from lfvit.models.reduction import reduce
from lfvit.models.registry import REDUCERS
from lfvit.models.settings import (
    NAMED_BACKBONES,
    PASSES,
    DVTSettings,
    LFViTSettings,
    backbone_settings,
    check_model,
    check_sizes,
    split_reducer,
)
from lfvit.models.tokens import resample_pos_embed
from lfvit.models.two_pass import TwoPassViT
from lfvit.utils.validation import validate

log = logging.getLogger(__name__)

FAMILIES: dict[str, type[VisionTransformer]] = {"vit": VisionTransformer, "lv_vit": LVViT}
"""Names of ``backbone.family`` -> class."""


def create_model(
    method: str,
    *,
    backbone: str | dict[str, Any],
    image_size: int = 224,
    num_classes: int = 1000,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    reducer: str | Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        method: "vit" for timm's one-pass ViT, "lf_vit" or "cf_vit" for the two-pass model with
            their published settings, "dvt" for a cascade of three ViTs.
        backbone: a timm ViT name such as "deit_small_patch16_224", "lv_vit_small", or a mapping
            with embed_dim, depth, num_heads and optionally the other fields of
            `lfvit.models.settings.ViTSettings`, or of `LVViTSettings` with family "lv_vit".
        image_size: side S in pixels of the full-resolution image, a multiple of the patch size; of
            twice the patch size for two passes.
        num_classes: outputs of the head.
        drop_path_rate: stochastic depth of the last block, for training.
        pretrained: start from timm's weights for the named backbone.
        reducer: a token reducer inside the blocks: its name ("evit"; "none"), or a mapping with
            ``name`` and its options. Two-pass models also take ``passes``: "first", "second" or
            "both".
        **options: of the two-pass methods, see `lfvit.models.settings.LFViTSettings`.

    Returns:
        "vit": timm's model, or an `LVViT`; images (B, 3, S, S) -> logits (B, C).
        Cascade: a `CascadeViT`, used like a `TwoPassViT`.
        Two-pass: a `TwoPassViT`; ``model(images)`` -> `ModelOutput`,
            ``model.infer(images, threshold)`` -> `EarlyExitOutput`.

    Raises:
        ConfigError: naming the setting, its value and what would be valid; or weights that cannot
            be had.
    """
    settings = check_model(
        method,
        backbone=backbone,
        reducer=reducer,
        options=options,
        image_size=image_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
        pretrained=pretrained,
    )
    vit = _build_vit(
        backbone,
        pretrained,
        img_size=image_size,
        num_classes=num_classes,
        drop_path_rate=drop_path_rate,
    )
    check_sizes(settings, image_size, vit.patch_embed.patch_size[0], len(vit.blocks))
    if isinstance(settings, DVTSettings):
        patch, grid = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size[0]
        grids = settings.grids or sorted({max(grid // 2, 1), max(grid * 5 // 7, 1), grid})
        if grids[-1] > grid:  # would see an enlarged image
            raise ConfigError(
                f"method.grids={grids}: image_size={image_size} has {grid} x {grid} patches; "
                f"valid: ascending numbers up to {grid}"
            )
        sized = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
        vits = [_build_vit(backbone, pretrained, img_size=g * patch, **sized) for g in grids]
        return CascadeViT(vits, image_size, reuse=settings.reuse)
    name, reducer_options, passes = split_reducer(reducer)
    if not isinstance(settings, LFViTSettings):
        return vit if name is None else reduce(vit, name, **reducer_options)
    token_reducer = None
    if name is not None:
        cls = REDUCERS[name]
        token_reducer = cls(validate(cls.settings_type, reducer_options, "reducer"), vit)
        if cls.learned:
            raise ConfigError(
                f"reducer={name} learns by a loss of its own, which only one pass has; it works "
                "with method=vit"
            )
        if token_reducer.drops and ("first" in PASSES[passes] or hasattr(vit, "aux_head")):
            raise ConfigError(
                f"reducer={name} drops patches, and the second pass needs an output of the first "
                "for every one, as does the auxiliary head of LV-ViT; it works with method=vit, "
                "and on a ViT with reducer.passes=second"
            )
    model = TwoPassViT(Backbone(vit), settings, image_size, token_reducer, PASSES[passes])
    if pretrained:
        if model.reuse is not None:
            log.info("made anew: reuse")
        with torch.no_grad():
            for pos_embed in (model.first_pos_embed, model.second_pos_embed):
                pos_embed.copy_(resample_pos_embed(vit.pos_embed, pos_embed.shape[1]))
    return model


def _build_vit(backbone: str | dict[str, Any], pretrained: bool, **common: Any) -> Any:
    """timm's `VisionTransformer`, or an `LVViT`."""
    settings = backbone_settings(backbone)
    if not isinstance(settings, str):
        if pretrained:
            raise ConfigError(
                "pretrained=true needs a backbone with a timm name, such as "
                "deit_small_patch16_224; for other weights pass their file to load_checkpoint "
                "(init_from=)"
            )
        sizes = settings.model_dump(exclude={"family", "norm_eps"}, exclude_none=True)
        norm_layer: Any = partial(nn.LayerNorm, eps=settings.norm_eps)
        return FAMILIES[settings.family](**common, **sizes, norm_layer=norm_layer)
    name = settings
    if not timm.is_model(name):
        known = [*NAMED_BACKBONES, *timm.list_models(["deit*", "vit*"])]
        close = get_close_matches(name, known, n=3) or ["deit_small_patch16_224"]
        raise ConfigError(f"backbone={name!r} is no model of timm; try {', '.join(close)}")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*") or ["none"]
        raise ConfigError(f"backbone={name!r}: {error}; there are {', '.join(tags)}") from error
    try:
        vit = timm.create_model(name, pretrained=pretrained, **common)
    except (OSError, RuntimeError) as error:  # RuntimeError: no weights, or no way to reach them
        if not pretrained:
            raise
        raise ConfigError(
            f"the weights of backbone={name!r} could not be fetched ({error}); download them "
            "elsewhere and pass the file to load_checkpoint, or set pretrained=false"
        ) from error
    except TypeError as error:
        raise ConfigError(f"backbone={name!r} is not a plain ViT of timm: {error}") from error
    had = getattr(vit, "pretrained_cfg", {}).get("num_classes", common["num_classes"])
    if pretrained and had != common["num_classes"]:
        log.info("weights of %s: its head has %s classes; made anew: head", name, had)
    if not isinstance(vit, VisionTransformer):
        raise ConfigError(
            f"backbone={name!r} is a {type(vit).__name__}; a plain ViT is needed, such as "
            "deit_small_patch16_224"
        )
    return vit

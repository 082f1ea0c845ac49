"""`create_model`: the one place where models are built."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lfvit.errors import ConfigError
from lfvit.models.backbone import Backbone, build_vit
from lfvit.models.reduction import build_reducer, reduce
from lfvit.models.resample import resample_pos_embed
from lfvit.models.reuse import REUSE, FeatureReuse
from lfvit.models.settings import (
    PASSES,
    LFViTSettings,
    check_model,
    check_sizes,
    split_reducer,
)
from lfvit.models.two_pass import TwoPassViT


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
            their published settings.
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
        Two-pass: a `TwoPassViT`; ``model(images)`` -> `ModelOutput`,
            ``model.infer(images, threshold)`` -> `EarlyExitOutput`.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
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
    vit = build_vit(backbone, image_size, num_classes, drop_path_rate, pretrained)
    check_sizes(settings, image_size, vit.patch_embed.patch_size[0], len(vit.blocks))
    name, reducer_options, passes = split_reducer(reducer)
    if not isinstance(settings, LFViTSettings):
        return vit if name is None else reduce(vit, name, **reducer_options)
    core, block = Backbone(vit), vit.blocks[0]
    reuse = None
    if (reuse_options := REUSE[settings.reuse]) is not None:
        mlp_ratio = block.mlp.fc1.out_features / core.embed_dim
        reuse = FeatureReuse(core.embed_dim, mlp_ratio, block.norm1.eps, **reuse_options)
    token_reducer = None if name is None else build_reducer(name, reducer_options, core.blocks)
    if token_reducer is not None and token_reducer.drops:
        raise ConfigError(
            f"reducer={name} drops patches, and the second pass needs an output for every one; it "
            "works with method=vit"
        )
    model = TwoPassViT(
        core,
        settings,
        image_size=image_size,
        reuse=reuse,
        reducer=token_reducer,
        reduced_passes=PASSES[passes],
    )
    if pretrained:
        with torch.no_grad():
            for pos_embed in (model.first_pos_embed, model.second_pos_embed):
                pos_embed.copy_(resample_pos_embed(vit.pos_embed, pos_embed.shape[1]))
    return model

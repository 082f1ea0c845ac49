"""`create_model`: the one place where models are built and their settings checked."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lfvit.errors import ConfigError
from lfvit.models.backbone import Backbone, build_vit
from lfvit.models.reduction import REDUCERS, Reducer
from lfvit.models.reduction.patch import build_reducer, reduce, shape_of
from lfvit.models.resample import resample_pos_embed
from lfvit.models.reuse import REUSE
from lfvit.models.selection import SELECTORS
from lfvit.models.two_pass import TwoPassViT
from lfvit.utils.validation import check_choice, check_names, check_range, check_whole

_COMMON = {
    "region_size": None,  # from the grid, see default_region_size; for window selectors
    "alpha": None,
    "beta": 0.99,
    "gca_start": 3,
    "selector": None,
    "reuse": "mlp",
    "background": True,
}
TWO_PASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "lf_vit": {**_COMMON, "alpha": 0.88, "selector": "ngca"},
    "cf_vit": {**_COMMON, "alpha": 0.5, "selector": "gca"},
}
"""Two-pass methods and the published settings of each."""

PASSES = {"first": ["first"], "second": ["second"], "both": ["first", "second"]}

METHODS = ("vit", *TWO_PASS_DEFAULTS)


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
            with embed_dim, depth, num_heads and optionally family ("vit"), patch_size (16),
            mlp_ratio (4), qkv_bias (True), norm_eps (1e-6). With family "lv_vit" the last three
            are 3, False and 1e-5, and there are skip_lam (2) and stem_dim (64).
        image_size: side S in pixels of the full-resolution image. The two-pass methods need a
            patch grid that halves evenly: S a multiple of twice the patch size.
        num_classes: outputs of the head.
        drop_path_rate: stochastic depth of the last block, for training.
        pretrained: start from timm's weights for the named backbone.
        reducer: a token reducer inside the blocks: its name ("evit"; "none"), or a mapping with
            ``name`` and its options. Two-pass models also take ``passes``: "first", "second" or
            "both".
        **options: of the two-pass methods. region_size (m, coarse cells; default 5 on a 7 x 7
            grid, 8 on 9 x 9, else 5/7 of the grid), alpha in (0, 1] (LF-ViT 0.88,
            CF-ViT 0.5), beta in [0, 1) (0.99), gca_start (3), selector ("ngca"; "gca"), reuse
            ("mlp"), background (True).

    Returns:
        "vit": timm's model, or an `LVViT`; images (B, 3, S, S) -> logits (B, C).
        Two-pass: a `TwoPassViT`; ``model(images)`` -> `ModelOutput`,
            ``model.infer(images, threshold)`` -> `EarlyExitOutput`.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    check_choice("method", method, METHODS)
    check_whole("image_size", image_size, 1)
    check_whole("num_classes", num_classes, 1)
    check_range("drop_path_rate", drop_path_rate, 0, 1, below=True)
    vit = build_vit(backbone, image_size, num_classes, drop_path_rate, pretrained)
    patch_size = vit.patch_embed.patch_size[0]
    _multiple(image_size, patch_size, f"patches of {patch_size}")
    reducing, passes = _reducer_settings(reducer)
    if method == "vit":
        check_names("method=vit", options, [])
        return reduce(vit, reducing.pop("name"), **reducing) if reducing else vit
    check_names(f"method={method}", options, TWO_PASS_DEFAULTS[method])
    options = {**TWO_PASS_DEFAULTS[method], **options}
    core = Backbone(vit)
    _multiple(image_size, 2 * patch_size, f"patches of {patch_size} at half resolution as well")
    grid = image_size // (2 * patch_size)  # side g of the coarse grid
    if options["region_size"] is None:
        options["region_size"] = default_region_size(grid)
    _check(options, grid, image_size, len(core.blocks))
    first_block: Any = vit.blocks[0]
    mlp_ratio = first_block.mlp.fc1.out_features / core.embed_dim
    options["reuse"] = REUSE[options["reuse"]](core.embed_dim, mlp_ratio, first_block.norm1.eps)
    if reducing:
        options |= {"reducer": _reducer(reducing, core), "reduced_passes": PASSES[passes]}
    model = TwoPassViT(core, image_size=image_size, **options)
    if pretrained:
        _spread_positions(vit, model)
    return model


def _reducer_settings(given: str | Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Name and options of a reducer, empty for none, and the passes it works in."""
    if given is not None and not isinstance(given, (str, Mapping)):
        raise ConfigError(f"reducer={given!r} must be a name, or a mapping with name and options")
    settings = {"name": given} if isinstance(given, str) else dict(given or {})
    passes = settings.pop("passes", "both")
    check_choice("reducer.passes", passes, PASSES)
    name = settings.pop("name", None)
    if name in (None, "none"):
        for key, value in settings.items():
            raise ConfigError(
                f"reducer.{key}={value!r} is set, but there is no reducer; name one as well: "
                f"{', '.join(REDUCERS)}"
            )
        return {}, passes
    check_choice("reducer.name", name, REDUCERS)
    return {"name": name, **settings}, passes


def _reducer(settings: dict[str, Any], core: Backbone) -> Reducer:
    """The reducer of a two-pass model."""
    found = build_reducer(settings, shape_of(core.blocks))
    if found.drops:
        raise ConfigError(
            f"reducer={settings['name']} drops patches, and the second pass needs an answer for "
            "every one; it works with method=vit"
        )
    return found


def default_region_size(grid: int) -> int:
    """The published window: 5 cells on the 7 x 7 grid of 224 pixels, 8 on the 9 x 9 of 288."""
    return {7: 5, 9: 8}.get(grid, max(1, grid * 5 // 7))


def _check(options: dict[str, Any], grid: int, image_size: int, depth: int) -> None:
    m, start = options["region_size"], options["gca_start"]
    check_whole("region_size", m, 1)
    if m > grid:
        raise ConfigError(
            f"region_size={m} does not fit the {grid} x {grid} grid of image_size={image_size}; "
            f"valid: 1 to {grid}"
        )
    check_range("alpha", options["alpha"], 0, 1, above=True)
    check_range("beta", options["beta"], 0, 1, below=True)
    check_whole("gca_start", start, 0)
    if start >= depth:
        raise ConfigError(
            f"gca_start={start} leaves no block to count; the backbone has {depth}, valid: 0 to "
            f"{depth - 1}"
        )
    check_choice("selector", options["selector"], SELECTORS)
    check_choice("reuse", options["reuse"], REUSE)
    if not isinstance(options["background"], bool):
        raise ConfigError(f"background={options['background']!r} must be true or false")


def _multiple(image_size: int, step: int, what: str) -> None:
    if image_size % step:
        below = max(image_size // step, 1) * step
        raise ConfigError(
            f"image_size={image_size} does not divide into {what}; it must be a multiple of "
            f"{step}, such as {below} or {below + step}"
        )


@torch.no_grad()
def _spread_positions(vit: Any, model: TwoPassViT) -> None:
    """Carry a pretrained ViT's position embeddings over to both grids."""
    for target in (model.first_pos_embed, model.second_pos_embed):
        target.copy_(resample_pos_embed(vit.pos_embed, target.shape[1]))

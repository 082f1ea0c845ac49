"""Settings of models, typed once; without PyTorch, so that a mistake is answered at once."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from lfvit.errors import ConfigError
from lfvit.models.registry import REDUCERS, SELECTORS
from lfvit.utils.validation import Settings, check_choice, validate

Share = Annotated[float, Field(gt=0, le=1)]


class ViTSettings(Settings):
    """A ViT given by its sizes: ``backbone.family=vit``.

    init_values: of LayerScale, as in timm; None: a ViT without.
    """

    family: Literal["vit", "lv_vit"] = "vit"
    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt = 16
    mlp_ratio: PositiveFloat = 4
    qkv_bias: bool = True
    norm_eps: PositiveFloat = 1e-6
    init_values: PositiveFloat | None = None

    @field_validator("num_heads")
    @classmethod
    def _divides_width(cls, num_heads: int, info: Any) -> int:
        width = info.data.get("embed_dim", 0)
        if width % num_heads:
            raise ValueError(f"it must divide embed_dim={width}")
        return num_heads


class LVViTSettings(ViTSettings):
    """An LV-ViT: ``backbone.family=lv_vit``, see `lfvit.models.lv_vit.LVViT`."""

    family: Literal["vit", "lv_vit"] = "lv_vit"
    patch_size: int = Field(16, gt=0, multiple_of=2)  # the stem halves the image
    mlp_ratio: PositiveFloat = 3
    qkv_bias: bool = False
    norm_eps: PositiveFloat = 1e-5
    init_values: None = None
    skip_lam: PositiveFloat = 2
    stem_dim: PositiveInt = 64


BACKBONE_FAMILIES: dict[str, type[ViTSettings]] = {"vit": ViTSettings, "lv_vit": LVViTSettings}

NAMED_BACKBONES = {  # that timm does not have
    "lv_vit_small": {"family": "lv_vit", "embed_dim": 384, "depth": 16, "num_heads": 6},
}


class LFViTSettings(Settings):
    """A two-pass model, with the published settings of LF-ViT.

    region_size: m, side of the window in coarse cells; None: 5 on the 7 x 7 grid of 224 pixels, 8
        on the 9 x 9 of 288, else 5/7 of the grid.
    alpha: share of the candidate cells that becomes fine.
    beta: weight of the past in the average of class attention.
    gca_start: first block, from 0, whose class attention counts.
    selector: how cells are chosen, a name in `lfvit.models.registry.SELECTORS`.
    reuse: what the second pass reuses of the first, a name in `lfvit.models.two_pass.REUSE`.
    background: keep the cells that are not chosen as coarse tokens of the second pass.
    """

    region_size: PositiveInt | None = None
    alpha: Share = 0.88
    beta: float = Field(0.99, ge=0, lt=1)
    gca_start: int = Field(3, ge=0)
    selector: str = "ngca"
    reuse: Literal[
        "mlp", "linear", "with_class_token", "with_uninformative", "everywhere", "none"
    ] = "mlp"
    background: bool = True


class CFViTSettings(LFViTSettings):
    """The published settings of CF-ViT."""

    alpha: Share = 0.5
    selector: str = "gca"


class DVTSettings(Settings):
    """A cascade of ViTs after DVT.

    grids: side of each pass's grid of tokens, ascending; None: a half, five sevenths and all of the
        image's patches, which is 7, 10 and 14 of 224 pixels.
    reuse: whether a pass adds the features of the one before to its tokens.
    """

    grids: list[PositiveInt] | None = None
    reuse: bool = True

    @field_validator("grids")
    @classmethod
    def _ascending(cls, grids: list[int] | None) -> list[int] | None:
        if grids is not None and (len(grids) < 2 or grids != sorted(set(grids))):
            raise ValueError("must be two or more ascending numbers, such as [7, 10, 14]")
        return grids


METHODS: dict[str, type[Settings]] = {
    "vit": Settings,
    "lf_vit": LFViTSettings,
    "cf_vit": CFViTSettings,
    "dvt": DVTSettings,
}
"""Names of ``method`` -> settings."""

PASSES = {"first": ["first"], "second": ["second"], "both": ["first", "second"]}
"""``reducer.passes`` of two-pass models -> passes whose blocks reduce."""


class ModelSettings(Settings):
    """The settings of every model."""

    method: Literal["vit", "lf_vit", "cf_vit", "dvt"]
    image_size: PositiveInt = 224
    num_classes: PositiveInt = 1000
    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    pretrained: bool = False


def check_model(
    method: str, *, backbone: Any, reducer: Any = None, options: Mapping[str, Any], **common: Any
) -> Settings:
    """Check the arguments of `lfvit.create_model` as far as is possible without PyTorch.

    Returns:
        The method's settings.

    Raises:
        ConfigError: names the setting, its value and what would be valid.
    """
    model = validate(ModelSettings, {"method": method, **common})
    settings = validate(METHODS[method], options, "method")
    if isinstance(settings, LFViTSettings):
        check_choice("method.selector", settings.selector, SELECTORS)
    spec = backbone_settings(backbone)
    name, _, _ = split_reducer(reducer)
    if isinstance(settings, DVTSettings) and (name or getattr(spec, "family", "vit") != "vit"):
        raise ConfigError(
            "method=dvt is a cascade of plain ViTs; reducers and LV-ViT work with the other methods"
        )
    if isinstance(spec, ViTSettings):
        check_sizes(settings, model.image_size, spec.patch_size, spec.depth)
    elif match := re.search(r"patch(\d+)", spec):  # timm's names say the patch size
        check_sizes(settings, model.image_size, int(match[1]))
    return settings


def backbone_settings(backbone: Any) -> ViTSettings | str:
    """A backbone's settings, or the name of a model of timm."""
    if isinstance(backbone, str):
        if backbone not in NAMED_BACKBONES:
            return backbone
        backbone = NAMED_BACKBONES[backbone]
    if not isinstance(backbone, Mapping):
        raise ConfigError(
            f"backbone={backbone!r} must be a name, or a mapping with embed_dim, depth, num_heads"
        )
    family = backbone.get("family", "vit")
    check_choice("backbone.family", family, BACKBONE_FAMILIES)
    return validate(BACKBONE_FAMILIES[family], backbone, "backbone")


def split_reducer(reducer: Any) -> tuple[str | None, dict[str, Any], str]:
    """Name (None without a reducer), options and passes of `lfvit.create_model`'s ``reducer``."""
    if reducer is not None and not isinstance(reducer, (str, Mapping)):
        raise ConfigError(f"reducer={reducer!r} must be a name, or a mapping with name and options")
    options = {"name": reducer} if isinstance(reducer, str) else dict(reducer or {})
    name = options.pop("name", None)
    if name in (None, "none"):
        if options:
            raise ConfigError(
                f"reducer.{next(iter(options))} is set, but there is no reducer; name one as "
                f"well: {', '.join(REDUCERS)}"
            )
        return None, {}, "both"
    passes = options.pop("passes", "both")
    check_choice("reducer.passes", passes, PASSES)
    check_choice("reducer.name", name, REDUCERS)
    from lfvit.models.reducer_settings import REDUCER_SETTINGS

    if name in REDUCER_SETTINGS:
        validate(REDUCER_SETTINGS[name], options, "reducer")
    return name, options, passes


def check_sizes(
    settings: Settings, image_size: int, patch_size: int, depth: int | None = None
) -> None:
    """Refuse an image, patch, window and depth that do not fit together."""
    two_pass = isinstance(settings, LFViTSettings)
    step = 2 * patch_size if two_pass else patch_size
    if image_size % step:
        below = max(image_size // step, 1) * step
        raise ConfigError(
            f"image_size={image_size} does not divide into patches of {patch_size}"
            f"{' at half resolution as well' if two_pass else ''}; it must be a multiple of "
            f"{step}, such as {below} or {below + step}"
        )
    if not isinstance(settings, LFViTSettings):
        return
    grid = image_size // step
    if settings.region_size is not None and settings.region_size > grid:
        raise ConfigError(
            f"method.region_size={settings.region_size} does not fit the {grid} x {grid} grid of "
            f"image_size={image_size}; valid: 1 to {grid}"
        )
    if depth is not None and settings.gca_start >= depth:
        raise ConfigError(
            f"method.gca_start={settings.gca_start} leaves no block to count; the backbone has "
            f"{depth}, valid: 0 to {depth - 1}"
        )

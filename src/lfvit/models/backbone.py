"""A plain ViT opened up: timm's parts, run on any sequence of tokens.

timm's own ``forward`` embeds one image and runs every token through every block. The two-pass
models need the same weights on sequences they compose themselves, and need to see where the class
token looks. `Backbone` takes the modules of a timm `VisionTransformer` over, unchanged, and offers
just that.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.lv_vit import ConvStem, Dense, LVViT
from lfvit.models.reduction.patch import foreign_blocks
from lfvit.models.reduction.registry import Layout, Reducer
from lfvit.models.reduction.run import Run, run_blocks
from lfvit.models.token_mix import TokenMix
from lfvit.utils.validation import check_choice, check_names, check_range, check_whole

FAMILIES: dict[str, tuple[type[VisionTransformer], dict[str, Any]]] = {
    "vit": (
        VisionTransformer,
        {"patch_size": 16, "mlp_ratio": 4, "qkv_bias": True, "norm_eps": 1e-6},
    ),
    "lv_vit": (
        LVViT,
        {"patch_size": 16, "mlp_ratio": 3, "qkv_bias": False, "norm_eps": 1e-5}
        | {"skip_lam": 2, "stem_dim": 64},
    ),
}
"""Names of ``backbone.family`` -> class, and its optional keys with their defaults."""

NAMED_BACKBONES: dict[str, dict[str, Any]] = {
    "lv_vit_small": {"family": "lv_vit", "embed_dim": 384, "depth": 16, "num_heads": 6},
}
"""Names that timm does not have."""

AUX_SHARE = 0.25  # of the auxiliary head in the answer of each of two passes (CF-ViT)


def build_vit(
    backbone: str | dict[str, Any],
    image_size: int,
    num_classes: int,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
) -> VisionTransformer:
    """Build timm's `VisionTransformer` for one image size.

    Args:
        backbone: a timm model name, "lv_vit_small", or a mapping with ``family`` (vit or lv_vit),
            ``embed_dim``, ``depth``, ``num_heads`` and optionally what `FAMILIES` lists.
        image_size: side in pixels.
        num_classes: outputs of the head.
        drop_path_rate: stochastic depth of the last block; earlier blocks scale linearly.
        pretrained: fetch timm's weights for a named model, position embeddings resampled.

    Raises:
        ConfigError: unknown name or key, or sizes that do not divide.
    """
    common = {
        "img_size": image_size,
        "num_classes": num_classes,
        "drop_path_rate": drop_path_rate,
    }
    if isinstance(backbone, str) and backbone not in NAMED_BACKBONES:
        return _named_vit(backbone, pretrained, common)
    if pretrained:
        raise ConfigError(
            "pretrained=true needs a backbone with a timm name, such as "
            "deit_small_patch16_224; for other weights pass their file to load_checkpoint "
            "(init_from=)"
        )
    spec = NAMED_BACKBONES[backbone] if isinstance(backbone, str) else backbone
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"backbone={backbone!r} must be a name, or a mapping with embed_dim, depth and "
            "num_heads"
        )
    return _custom_vit(dict(spec), common)


def _named_vit(name: str, pretrained: bool, common: dict[str, Any]) -> VisionTransformer:
    if not timm.is_model(name):
        known = [*NAMED_BACKBONES, *timm.list_models(["deit*", "vit*"])]
        close = get_close_matches(name, known, n=3) or ["deit_small_patch16_224"]
        raise ConfigError(f"backbone={name!r} is no model of timm; try {', '.join(close)}")
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
    if not isinstance(vit, VisionTransformer):
        raise ConfigError(
            f"backbone={name!r} is a {type(vit).__name__}; a plain ViT is needed, such as "
            "deit_small_patch16_224"
        )
    return vit


def _custom_vit(spec: dict[str, Any], common: dict[str, Any]) -> VisionTransformer:
    name = spec.pop("family", "vit")
    check_choice("backbone.family", name, FAMILIES)
    family, defaults = FAMILIES[name]
    check_names("backbone", spec, ["embed_dim", "depth", "num_heads", *defaults])
    spec = {**defaults, **spec}
    for key in ("embed_dim", "depth", "num_heads"):
        check_whole(f"backbone.{key}", spec.get(key), 1)
    for key in {"patch_size", "stem_dim"} & spec.keys():
        check_whole(f"backbone.{key}", spec[key], 1)
    for key in {"mlp_ratio", "norm_eps", "skip_lam"} & spec.keys():
        check_range(f"backbone.{key}", spec[key], 0, above=True)
    if spec["embed_dim"] % spec["num_heads"]:
        raise ConfigError(
            f"backbone.embed_dim={spec['embed_dim']} is not a multiple of "
            f"num_heads={spec['num_heads']}"
        )
    if name == "lv_vit" and spec["patch_size"] % 2:
        raise ConfigError(
            f"backbone.patch_size={spec['patch_size']} is odd; the stem of family=lv_vit halves "
            "the image first, so it must be even, such as 16"
        )
    eps = spec.pop("norm_eps")

    def norm_layer(dim: int, **kwargs: Any) -> nn.LayerNorm:
        return nn.LayerNorm(dim, eps=eps, **kwargs)

    return family(**common, **spec, norm_layer=norm_layer)


class Backbone(nn.Module):
    """What both passes share: patch embedding, class token, blocks, final norm and head.

    The modules come from a timm `VisionTransformer` and keep their names, so that state dicts
    differ from timm's by a prefix only. Position embeddings are not here: each pass has its own.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        _refuse_unsupported(vit)
        self.patch_embed = vit.patch_embed
        self.cls_token: Any = vit.cls_token  # never None, see _refuse_unsupported
        self.reg_token: Any = vit.reg_token  # (1, R, D) registers, or None
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.head_drop = vit.head_drop
        self.head = vit.head
        self.aux_head: nn.Module | None = getattr(vit, "aux_head", None)  # of LV-ViT
        self.embed_dim: int = vit.embed_dim
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.prefix: int = vit.num_prefix_tokens

    def stem(self, images: Tensor, mix: TokenMix | None = None) -> Tensor:
        """What the patch projection sees: the images, or the maps of a convolutional stem."""
        stem = self.patch_embed
        maps = stem.maps(images) if isinstance(stem, ConvStem) else images
        return maps if mix is None else mix.maps(maps)

    def embed(self, images: Tensor, mix: TokenMix | None = None) -> Tensor:
        """Every patch of every image as a token: (B, 3, S, S) -> (B, (S/P)^2, D), row-major."""
        return self.patch_embed.proj(self.stem(images, mix)).flatten(2).transpose(1, 2)

    def embed_patches(
        self, images: Tensor, positions: Tensor, mix: TokenMix | None = None
    ) -> Tensor:
        """Only the patches asked for: the projection of `embed` as one product on gathered maps.

        Args:
            images: (B, 3, S, S)
            positions: (B, K) row-major indices into the (S/P) x (S/P) grid.
            mix: cells that come from another image of the batch.

        Returns:
            (B, K, D)
        """
        proj = self.patch_embed.proj
        chosen = self.pick_patches(self.stem(images, mix), positions)
        return F.linear(chosen.flatten(2), proj.weight.flatten(1), proj.bias)

    def pick_patches(self, maps: Tensor, positions: Tensor) -> Tensor:
        """What the projection of `embed_patches` sees: maps (B, c, s, s) -> (B, K, c, p, p)."""
        p = self.patch_embed.proj.kernel_size[0]  # side of a patch in the maps
        grid = maps.shape[-1] // p
        patches = maps.unflatten(3, (grid, p)).unflatten(2, (grid, p))  # (B, c, G, p, G, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, G, G, c, p, p), still a view
        rows = torch.arange(maps.shape[0], device=maps.device)[:, None]
        return patches[rows, positions // grid, positions % grid]

    def run(
        self,
        tokens: Tensor,
        class_rows_from: int | None = None,
        reducer: Reducer | None = None,
        layout: Layout | None = None,
    ) -> Run:
        """Run all blocks on any sequence whose first token is the class token.

        Registers, where the ViT has them, are put behind the class token, and left out of what
        comes back.

        Args:
            tokens: (B, N, D)
            class_rows_from: collect the class attention of the blocks from this index (0-based)
                on; None collects none.
            reducer: shortens the sequence on the way; needs its layout.
        """
        if self.reg_token is not None:
            registers = self.reg_token.expand(tokens.shape[0], -1, -1).to(tokens)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        run = run_blocks(
            self.blocks,
            self.norm_pre(tokens),
            prefix=self.prefix,
            reducer=reducer,
            layout=None if layout is None else layout._replace(prefix=self.prefix),
            class_rows_from=class_rows_from,
        )
        return run if self.reg_token is None else run.without_registers(self.prefix)

    def classify(self, tokens: Tensor) -> tuple[Tensor, Dense | None]:
        """Read the answer of a pass off its tokens.

        With an auxiliary head, each class's largest logit over the patch tokens adds to the class
        token's (CF-ViT's released code); without, only the class token is looked at.

        Args:
            tokens: (B, N, D), normed, the class token first; see `answering`.

        Returns:
            Logits (B, C), and what both heads say, None without an auxiliary head.
        """
        logits = self.head(self.head_drop(tokens[:, 0]))
        if self.aux_head is None:
            return logits, None
        dense = Dense(logits, self.aux_head(tokens[:, 1:]))
        return dense.answer(AUX_SHARE), dense

    def answering(self, run: Run) -> Tensor:
        """The normed tokens `classify` needs of a run.

        (B, 1, D), or (B, N, D) with an auxiliary head: one for every token at the run's start.
        """
        if self.aux_head is None:
            return self.norm(run.tokens[:, :1])
        return run.expand(self.norm(run.tokens))


def foreign_parts(vit: VisionTransformer) -> Iterator[str]:
    """Parts of a timm ViT that this project's block and its cost formula do not know."""
    if type(vit.patch_embed) not in (PatchEmbed, ConvStem):
        yield f"a {type(vit.patch_embed).__name__} stem"
    elif type(vit.patch_embed) is PatchEmbed and not isinstance(vit.patch_embed.norm, nn.Identity):
        yield "a norm in the patch embedding"
    if vit.attn_pool is not None:
        yield "attention pooling"
    yield from foreign_blocks(vit)


def _refuse_unsupported(vit: VisionTransformer) -> None:
    """Refuse what `Backbone` would silently drop or compute differently from timm's own forward."""
    reasons = list(foreign_parts(vit))
    if vit.cls_token is None:
        reasons.append("no class token")
    elif hasattr(vit, "dist_token"):
        reasons.append("a distillation token with a head of its own")
    elif vit.reg_token is not None and not vit.no_embed_class:
        reasons.append("registers with positions")
    if vit.global_pool != "token" or not isinstance(vit.fc_norm, nn.Identity):
        reasons.append(f"global_pool={vit.global_pool!r}")
    if vit.pos_embed is None:
        reasons.append("no position embedding")
    if reasons:
        raise ConfigError(
            f"this {type(vit).__name__} cannot serve both passes: it has {'; '.join(reasons)}. "
            "A ViT with one class token and learned position embeddings is needed, such as "
            "deit_small_patch16_224"
        )

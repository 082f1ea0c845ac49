"""A plain ViT in parts, run on any sequence of tokens.

timm's own ``forward`` embeds one image and runs every token through every block. The two-pass
models need the same weights on sequences they compose themselves, and the class attention of the
blocks. `Backbone` takes over the modules of a timm `VisionTransformer`, unchanged.
"""

from difflib import get_close_matches
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.blocks import BlocksOutput, run_blocks
from lfvit.models.lv_vit import ConvStem, DenseLogits, LVViT, TokenMix
from lfvit.models.reducers.base import Layout, Reducer
from lfvit.models.reduction import unsupported_blocks
from lfvit.models.settings import NAMED_BACKBONES, backbone_settings

FAMILIES: dict[str, type[VisionTransformer]] = {"vit": VisionTransformer, "lv_vit": LVViT}
"""Names of ``backbone.family`` -> class."""

AUX_SHARE = 0.25
"""Weight of the auxiliary head in the logits of each of two passes (CF-ViT's released code)."""


def build_vit(
    backbone: str | dict[str, Any],
    image_size: int,
    num_classes: int,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
) -> Any:
    """timm's `VisionTransformer`, or an `LVViT`, for one image size.

    Args:
        backbone, image_size, num_classes, drop_path_rate, pretrained: see `lfvit.create_model`.

    Raises:
        ConfigError: an unknown name, no plain ViT, or weights that cannot be had.
    """
    settings = backbone_settings(backbone)
    common: dict[str, Any] = {
        "img_size": image_size,
        "num_classes": num_classes,
        "drop_path_rate": drop_path_rate,
    }
    if isinstance(settings, str):
        return _timm_vit(settings, pretrained, common)
    if pretrained:
        raise ConfigError(
            "pretrained=true needs a backbone with a timm name, such as "
            "deit_small_patch16_224; for other weights pass their file to load_checkpoint "
            "(init_from=)"
        )
    sizes = settings.model_dump(exclude={"family", "norm_eps"})
    norm_layer: Any = partial(nn.LayerNorm, eps=settings.norm_eps)
    return FAMILIES[settings.family](**common, **sizes, norm_layer=norm_layer)


def _timm_vit(name: str, pretrained: bool, common: dict[str, Any]) -> VisionTransformer:
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
        self.num_prefix_tokens: int = vit.num_prefix_tokens

    def stem(self, images: Tensor, mix: TokenMix | None = None) -> Tensor:
        """Input of the patch projection: the images, or the maps of a convolutional stem."""
        stem = self.patch_embed
        maps = stem.maps(images) if isinstance(stem, ConvStem) else images
        return maps if mix is None else mix.maps(maps)

    def embed(self, images: Tensor, mix: TokenMix | None = None) -> Tensor:
        """All patches as tokens: (B, 3, S, S) -> (B, (S/P)^2, D), row-major."""
        return self.patch_embed.proj(self.stem(images, mix)).flatten(2).transpose(1, 2)

    def embed_patches(self, images: Tensor, indices: Tensor, mix: TokenMix | None = None) -> Tensor:
        """Some patches as tokens: the projection of `embed` as one product on gathered patches.

        Args:
            images: (B, 3, S, S)
            indices: (B, K) row-major, into the (S/P) x (S/P) grid.
            mix: cells that come from another image of the batch.

        Returns:
            (B, K, D)
        """
        proj = self.patch_embed.proj
        patches = self.gather_patches(self.stem(images, mix), indices)  # (B, K, c, p, p)
        return F.linear(patches.flatten(2), proj.weight.flatten(1), proj.bias)

    def gather_patches(self, maps: Tensor, indices: Tensor) -> Tensor:
        """Patches (B, K, c, p, p) of maps (B, c, s, s) at row-major indices (B, K)."""
        p = self.patch_embed.proj.kernel_size[0]  # side of a patch in the maps
        grid = maps.shape[-1] // p
        patches = maps.unflatten(3, (grid, p)).unflatten(2, (grid, p))  # (B, c, G, p, G, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, G, G, c, p, p), no copy yet
        rows = torch.arange(maps.shape[0], device=maps.device)[:, None]
        return patches[rows, indices // grid, indices % grid]

    def run(
        self,
        tokens: Tensor,
        class_attention_from: int | None = None,
        reducer: Reducer | None = None,
        layout: Layout | None = None,
    ) -> BlocksOutput:
        """All blocks on any sequence that begins with the class token.

        The registers of a ViT that has them are inserted after the class token, and left out of
        the output.

        Args:
            tokens: (B, N, D)
            class_attention_from, reducer, layout: see `run_blocks`.
        """
        if self.reg_token is not None:
            registers = self.reg_token.expand(tokens.shape[0], -1, -1).to(tokens)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        if layout is not None:
            layout = layout._replace(num_prefix_tokens=self.num_prefix_tokens)
        output = run_blocks(
            self.blocks,
            self.norm_pre(tokens),
            num_prefix_tokens=self.num_prefix_tokens,
            reducer=reducer,
            layout=layout,
            class_attention_from=class_attention_from,
        )
        if self.reg_token is None:
            return output
        return output.without_registers(self.num_prefix_tokens)

    def head_tokens(self, output: BlocksOutput) -> Tensor:
        """The normed tokens that `classify` reads.

        (B, 1, D), or (B, N, D) with an auxiliary head: one for every token at the start.
        """
        if self.aux_head is None:
            return self.norm(output.tokens[:, :1])
        return output.unmerge(self.norm(output.tokens))

    def classify(self, tokens: Tensor) -> tuple[Tensor, DenseLogits | None]:
        """Logits of a pass.

        With an auxiliary head, a share of each class's largest logit over the patch tokens is added
        to the class token's; without, only the class token is read.

        Args:
            tokens: (B, N, D), normed, the class token first.

        Returns:
            Logits (B, C), and those of both heads, None without an auxiliary head.
        """
        logits = self.head(self.head_drop(tokens[:, 0]))
        if self.aux_head is None:
            return logits, None
        dense = DenseLogits(logits, self.aux_head(tokens[:, 1:]))
        return dense.combine(AUX_SHARE), dense


def _refuse_unsupported(vit: VisionTransformer) -> None:
    """Refuse what `Backbone` would drop or compute differently from timm's own forward."""
    stem, blocks = vit.patch_embed, unsupported_blocks(vit)
    reasons = {
        f"a {type(stem).__name__} stem": type(stem) not in (PatchEmbed, ConvStem),
        "a norm in the patch embedding": isinstance(getattr(stem, "norm", None), nn.LayerNorm),
        "attention pooling": vit.attn_pool is not None,
        str(blocks): blocks is not None,
        "no class token": vit.cls_token is None,
        "a distillation token with a head of its own": hasattr(vit, "dist_token"),
        "registers with positions": vit.reg_token is not None and not vit.no_embed_class,
        f"global_pool={vit.global_pool!r}": vit.global_pool != "token",
        "a norm before the head": not isinstance(vit.fc_norm, nn.Identity),
        "no position embedding": vit.pos_embed is None,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise ConfigError(
            f"this {type(vit).__name__} cannot serve both passes: it has {'; '.join(found)}. A ViT "
            "with one class token and learned position embeddings is needed, such as "
            "deit_small_patch16_224"
        )

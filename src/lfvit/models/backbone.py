"""A plain ViT in parts, run on any sequence of tokens.

timm's own ``forward`` embeds one image and runs every token through every block. The two-pass
models need the same weights on sequences they compose themselves, and the class attention of the
blocks. `Backbone` takes over the modules of a timm `VisionTransformer`, unchanged.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.blocks import BlocksOutput, Layout, run_blocks, unsupported_blocks
from lfvit.models.lv_vit import ConvStem, DenseLogits, TokenMix
from lfvit.models.reducers import Reducer

AUX_SHARE = 0.25
"""Weight of the auxiliary head in the logits of each of two passes (CF-ViT's released code)."""


class Backbone(nn.Module):
    """What both passes share: patch embedding, class token, blocks, final norm and head.

    The modules come from a timm `VisionTransformer` and keep their names, so that state dicts
    differ from timm's by a prefix only. Position embeddings are not here: each pass has its own.

    Raises:
        ConfigError: a ViT of which this would drop a part, or compute one differently.
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
        maps, p = self.stem(images, mix), proj.kernel_size[0]  # p: side of a patch in the maps
        grid = maps.shape[-1] // p
        patches = maps.unflatten(3, (grid, p)).unflatten(2, (grid, p))  # (B, c, G, p, G, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (B, G, G, c, p, p), no copy yet
        rows = torch.arange(maps.shape[0], device=maps.device)[:, None]
        patches = patches[rows, indices // grid, indices % grid]  # (B, K, c, p, p)
        return F.linear(patches.flatten(2), proj.weight.flatten(1), proj.bias)

    def with_class_token(self, patches: Tensor, pos_embed: Tensor) -> Tensor:
        """Patch tokens (B, n, D) behind the class token with the first position: (B, 1 + n, D)."""
        class_token = (self.cls_token + pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token.to(patches), patches], dim=1)

    def run(
        self,
        tokens: Tensor,
        class_attention_from: int | None = None,
        reducer: Reducer | None = None,
        layout: Layout | None = None,
    ) -> BlocksOutput:
        """All blocks on any sequence (B, N, D) that begins with the class token, see `run_blocks`.

        The registers of a ViT that has them are inserted after the class token, and left out of
        the output.
        """
        prefix = self.num_prefix_tokens
        if self.reg_token is not None:
            registers = self.reg_token.expand(tokens.shape[0], -1, -1).to(tokens)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        tokens, class_attention, state = run_blocks(
            self.blocks,
            self.norm_pre(tokens),
            prefix,
            reducer=reducer,
            layout=layout,
            class_attention_from=class_attention_from,
        )
        if self.reg_token is not None:
            tokens = torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)
            state = None if state is None else state._replace(num_prefix_tokens=1)
        return BlocksOutput(tokens, class_attention, state)

    def normed(self, output: BlocksOutput, every: bool) -> Tensor:
        """Tokens after the final norm: the class token and one for every patch of the start.

        every: (B, 1 + n, D); without, and without an auxiliary head, the class token alone is read.
        """
        if not every and self.aux_head is None:
            return self.norm(output.tokens[:, :1])
        tokens = self.norm(output.tokens)
        return tokens if output.state is None else output.state.unmerge(tokens)

    def classify(self, tokens: Tensor) -> tuple[Tensor, DenseLogits | None]:
        """Logits of a pass.

        With an auxiliary head, a share of each class's largest logit over the patch tokens is added
        to the class token's; without, only the class token is read.

        Args:
            tokens: (B, N, D), normed, the class token first.

        Returns:
            Logits (B, C), and those of both heads, None without an auxiliary head.
        """
        with torch.autocast(tokens.device.type, enabled=False):  # confidences are of these digits
            class_token = tokens[:, 0].to(self.cls_token.dtype)
            logits = self.head(self.head_drop(class_token))  # (B, C)
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

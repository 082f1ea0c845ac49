"""LV-ViT (Jiang et al. 2021, arXiv 2104.10858) as a timm ViT.

It differs from DeiT by a convolutional stem before the patch projection, residual branches divided
by a constant, and an auxiliary head that classifies every patch token. Blocks are timm's, so that
reducers work on them; names of weights are the released ones.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lfvit.models.tokens import check_image_size

AUX_SHARE = 0.5
"""Weight of the auxiliary head in the one-pass model's logits."""


class DenseLogits(NamedTuple):
    """Logits of both heads in one pass.

    class_logits: (B, C), of the class token. token_logits: (B, N, C), of the N patch tokens.
    """

    class_logits: Tensor
    token_logits: Tensor

    def combine(self, share: float) -> Tensor:
        """Class logits plus a share of each class's largest token logit: (B, C)."""
        return self.class_logits + share * self.token_logits.amax(dim=1)


class TokenMix(NamedTuple):
    """Replace cells by those of the batch read backwards (Jiang et al. 2021), at any resolution.

    mask: (n, n) bool, the cells of the coarse grid that come from the partner.
    """

    mask: Tensor

    @classmethod
    def from_draw(
        cls, draw: tuple[float, float, float], grid: int, device: torch.device | None = None
    ) -> "TokenMix":
        """Cutmix's box on an n x n grid of cells, as the released code draws it.

        Args:
            draw: the share of the area that stays, and the row and column of the box's centre as
                shares of the side, below 1. The box is cut off at the edges, and its sides are an
                even number of cells before that: on 7 x 7 cells, with a uniform share, .235 of the
                area is mixed on average.
        """
        kept, *center = draw
        half = int(grid * math.sqrt(1 - kept)) // 2
        top, left = (max(int(c * grid) - half, 0) for c in center)
        bottom, right = (int(c * grid) + half for c in center)
        mask = torch.zeros(grid, grid, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return cls(mask.to(device))

    def maps(self, maps: Tensor) -> Tensor:
        """Mix maps (B, C, M, M), M a multiple of n, along the edges of the cells."""
        scale = maps.shape[-1] // len(self.mask)
        mask = self.mask.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        return torch.where(mask, maps.flip(0), maps)

    def targets(self, targets: Tensor) -> Tensor:
        """Mix the labels of whole images, probabilities (B, C), by the area each of them has."""
        share = self.mask.to(targets.dtype).mean()
        return targets + share * (targets.flip(0) - targets)


class Scale(nn.Module):
    """Multiply by a constant, in place of the learned layer scale of timm's blocks."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ConvStem(nn.Module):
    """Patch embedding: three convolutions at half resolution, then the projection of patches.

    The arguments are those of timm's `PatchEmbed`, and stem_dim, the channels of the convolutions.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        stem_dim: int = 64,
        **_: Any,  # padding, device and dtype, which nothing here sets
    ) -> None:
        super().__init__()
        grid, side = img_size // patch_size, patch_size // 2
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size, self.num_patches = (grid, grid), grid**2
        self.conv1 = nn.Conv2d(in_chans, stem_dim, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_dim)
        self.conv2 = nn.Conv2d(stem_dim, stem_dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_dim)
        self.conv3 = nn.Conv2d(stem_dim, stem_dim, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(stem_dim)
        self.to(memory_format=torch.channels_last)  # faster convolutions
        self.proj = nn.Conv2d(stem_dim, embed_dim, side, stride=side, bias=bias)

    def maps(self, images: Tensor) -> Tensor:
        """Input of the projection: (B, 3, S, S) -> (B, stem_dim, S/2, S/2)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))

    def forward(self, images: Tensor, mix: TokenMix | None = None) -> Tensor:
        """(B, 3, S, S) -> (B, (S/P)^2, D), row-major."""
        check_image_size(images.shape[-2:], self.img_size[0])
        maps = self.maps(images)
        return self.proj(maps if mix is None else mix.maps(maps)).flatten(2).transpose(1, 2)


class LVViT(VisionTransformer):
    """LV-ViT in one pass: images (B, 3, S, S) -> logits (B, C).

    The logits are the class token's plus half of each class's largest logit over the patch tokens,
    however many of these are left after the last block.

    Args:
        skip_lam: divisor of every residual branch.
        stem_dim: channels of the convolutional stem.
        **settings: of timm's `VisionTransformer`.
    """

    def __init__(self, *, skip_lam: float = 2.0, stem_dim: int = 64, **settings: Any) -> None:
        super().__init__(embed_layer=partial(ConvStem, stem_dim=stem_dim), **settings)
        blocks: Any = self.blocks
        for block in blocks:
            block.ls1, block.ls2 = Scale(1 / skip_lam), Scale(1 / skip_lam)
        self.aux_head = nn.Linear(self.embed_dim, self.num_classes)
        trunc_normal_(self.aux_head.weight, std=0.02)
        nn.init.zeros_(self.aux_head.bias)

    def forward(  # type: ignore[override]
        self, images: Tensor, mix: TokenMix | None = None, *, dense: bool = False
    ) -> Tensor | DenseLogits:
        """Logits (B, C); those of both heads if `dense`, for training with token labels.

        Args:
            images: (B, 3, S, S), normalised.
            mix: cells that come from another image of the batch.
        """
        tokens = self._pos_embed(self.patch_embed(images, mix))  # (B, 1 + N, D)
        tokens = self.norm(self.blocks(tokens))
        logits = DenseLogits(self.head(self.head_drop(tokens[:, 0])), self.aux_head(tokens[:, 1:]))
        return logits if dense else logits.combine(AUX_SHARE)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's second half of the forward: normed tokens -> logits."""
        logits = super().forward_head(x, pre_logits)
        if pre_logits:
            return logits
        return DenseLogits(logits, self.aux_head(x[:, 1:])).combine(AUX_SHARE)

"""EViT (Liang et al., ICLR 2022): keep the tokens of high class attention, fuse the others."""

import math
from typing import Any

import torch
from torch import Tensor

from lfvit.models.blocks import class_attention
from lfvit.models.reducer_settings import EViTSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, num_keep, split_topk


@reducer("evit")
class EViT(Reducer):
    """In a reducing block, only the patch tokens of highest class attention go on to the MLP.

    The others become one token, their sum weighted by that attention (section 3.2; the weights are
    not rescaled). It takes part in later reductions like any other token. Without fuse_token they
    are dropped.
    """

    settings_type = EViTSettings
    needs_class_token = True

    def __init__(self, settings: EViTSettings, vit_blocks: Any) -> None:
        super().__init__(settings, vit_blocks)
        self.keep_rate = settings.keep_rate
        self.drops = not settings.fuse_token

    def start_batch(self, epoch: float) -> None:
        final, epochs = self.settings.keep_rate, self.settings.shrink_epochs
        if epochs:
            done = min(max((epoch - self.settings.shrink_start) / epochs, 0.0), 1.0)
            self.keep_rate = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        x, _ = super().attention(index, attn, q, k, v, bias, state)
        n = state.num_tokens
        if index not in self.blocks or num_keep(self.keep_rate, n) == n:
            return x, None
        return x, class_attention(attn, q, k)[:, state.num_prefix_tokens - 1 :]  # (B, n)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None:
            return tokens, state
        k = num_keep(self.keep_rate, state.num_tokens)
        kept, others = split_topk(metric, k)  # (B, k), (B, n - k)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        if not self.settings.fuse_token:
            return torch.cat([prefix, gather_tokens(patches, kept)], dim=1), state.keep(kept, k)
        weights = metric.gather(1, others)[:, :, None]
        fused = (weights * gather_tokens(patches, others)).sum(dim=1, keepdim=True)  # (B, 1, D)
        tokens = torch.cat([prefix, gather_tokens(patches, kept), fused.to(tokens.dtype)], dim=1)
        return tokens, state.keep(kept, k + 1)

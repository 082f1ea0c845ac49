"""EViT (Liang et al., ICLR 2022): keep the tokens of high class attention, fuse the others."""

import math
from typing import Any

import torch
from torch import Tensor

from lfvit.models.reducer_settings import EViTSettings
from lfvit.models.reducers import Reduced, TokenState, reducer
from lfvit.models.reducers.topk import TopK
from lfvit.models.tokens import gather_tokens, num_keep, split_topk


@reducer("evit")
class EViT(TopK):
    """In a reducing block, only the patch tokens of highest class attention go on to the MLP.

    The others become one token, their sum weighted by that attention (section 3.2; the weights are
    not rescaled). It takes part in later reductions like any other token. Without fuse_token they
    are dropped.
    """

    settings_type = EViTSettings
    drops = False

    def __init__(self, settings: EViTSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.keep_rate = settings.keep_rate
        self.drops = not settings.fuse_token

    def start_batch(self, epoch: float) -> None:
        final, epochs = self.settings.keep_rate, self.settings.shrink_epochs
        if epochs:
            done = min(max((epoch - self.settings.shrink_start) / epochs, 0.0), 1.0)
            self.keep_rate = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    def num_kept(self, index: int, state: TokenState) -> int:
        return num_keep(self.keep_rate, state.num_tokens)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None or not self.settings.fuse_token:
            return super().reduce_tokens(index, tokens, metric, state)
        k = self.num_kept(index, state)
        kept, others = split_topk(metric, k)  # (B, k), (B, n - k)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        weights = metric.gather(1, others)[:, :, None]
        fused = (weights * gather_tokens(patches, others)).sum(dim=1, keepdim=True)  # (B, 1, D)
        tokens = torch.cat([prefix, gather_tokens(patches, kept), fused.to(tokens.dtype)], dim=1)
        return tokens, state.keep(kept, k + 1)

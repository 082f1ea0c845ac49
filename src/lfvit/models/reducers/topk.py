"""Top-K (Haurum et al. 2023, arXiv 2308.04657): drop the tokens of least class attention."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lfvit.models.blocks import class_attention
from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, split_topk
from lfvit.utils.validation import Settings


@reducer("topk")
class TopK(Reducer):
    """In a reducing block, only the patch tokens of highest class attention go on to the MLP."""

    settings_type: ClassVar[type[Settings]] = KeepRateSettings
    needs_class_token = True
    drops = True

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        x, _ = super().attention(index, attn, q, k, v, bias, state)
        if index not in self.blocks or self.num_kept(index, state) == state.num_tokens:
            return x, None
        return x, class_attention(attn, q, k)[:, state.num_prefix_tokens - 1 :]  # (B, n)

    def num_kept(self, index: int, state: TokenState) -> int:
        """Patch tokens kept in reducing block `index`."""
        return self.num_left(index, state.num_patches)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None:
            return tokens, state
        k = self.num_kept(index, state)
        kept, _ = split_topk(metric, k)  # (B, k)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        return torch.cat([prefix, gather_tokens(patches, kept)], dim=1), state.keep(kept, k)

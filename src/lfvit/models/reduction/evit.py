"""EViT (Liang et al., ICLR 2022): keep what the class token looks at, fuse the rest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfvit.models.attention import class_attention
from lfvit.models.indexing import kept_count, split, take
from lfvit.models.reduction.registry import Carried, Reducer, Shape, check_blocks, reducer
from lfvit.utils.validation import check_range


@reducer("evit")
class EViT(Reducer):
    """In a reducing block, only the patch tokens of highest class attention go on to the MLP.

    The others become one token, their sum weighted by that attention (section 3.2; the weights are
    not rescaled). It takes part in later reductions like any other token.

    Args:
        keep_rate: share of the patch tokens kept in each reducing block, in (0, 1].
        blocks: the reducing blocks, from 1; None is 4, 7, 10 of 12.
    """

    needs_class_token = True

    def __init__(
        self, shape: Shape, *, keep_rate: float = 0.7, blocks: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        check_range("reducer.keep_rate", keep_rate, 0, 1, above=True)
        self.keep_rate = keep_rate
        self.blocks = check_blocks(blocks, shape.depth)
        self.width = shape.num_heads * shape.head_dim

    def _kept(self, index: int, count: int) -> int:
        return kept_count(self.keep_rate, count) if index in self.blocks else count

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, carried: Carried
    ) -> tuple[Tensor, Any]:
        mixed, row = super().attention(index, attn, q, k, v, bias, carried)
        if self._kept(index, carried.length) < carried.length:
            row = class_attention(attn, q, k)[:, carried.prefix - 1 :]  # (B, length)
        return mixed, row

    def shorten(
        self, index: int, tokens: Tensor, seen: Any, carried: Carried
    ) -> tuple[Tensor, Carried]:
        if seen is None:
            return tokens, carried
        keep = self._kept(index, carried.length)
        kept, others = split(seen, keep)
        prefix, patches = tokens[:, : carried.prefix], tokens[:, carried.prefix :]
        weights = seen.gather(1, others)[:, :, None]
        fused = (weights * take(patches, others)).sum(dim=1, keepdim=True)  # (B, 1, D)
        tokens = torch.cat([prefix, take(patches, kept), fused.to(tokens.dtype)], dim=1)
        to = torch.full_like(seen, keep, dtype=torch.long)  # where every token goes: fused, or kept
        to = to.scatter(1, kept, torch.arange(keep, device=kept.device).expand_as(kept))
        return tokens, carried.moved(to, keep + 1)

    def lengths(self, index: int, count: int, start: int) -> tuple[int, int]:
        keep = self._kept(index, count)
        return count, min(keep + 1, count)

    def extra_macs(self, index: int, count: int, start: int, prefix: int) -> int:
        """One query against all keys."""
        return (prefix + count) * self.width if self._kept(index, count) < count else 0

"""ToMe (Bolya et al., ICLR 2023): merge the most similar tokens, in every block."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.models.reduction.registry import Carried, Reducer, Shape, reducer
from lfvit.utils.validation import check_range, check_whole


def match(keys: Tensor, merged: int, prefix: int) -> Tensor:
    """Bipartite soft matching (section 3): which patch tokens merge into which.

    The sequence, prefix included, is dealt alternately into A and B. Every token of A is matched to
    the token of B with the most similar key (cosine), and the `merged` most similar pairs become
    one. Prefix tokens are protected.

    Args:
        keys: (B, n, d) of the patch tokens, averaged over heads.
        merged: how many pairs, at most n // 2.
        prefix: tokens in front of the patch tokens, which shift what is dealt into A.

    Returns:
        (B, n): where each patch token goes in the new order, which is what is left of A, then B.
    """
    B, n, _ = keys.shape
    numbers = torch.arange(n, device=keys.device)
    a, b = numbers[prefix % 2 :: 2], numbers[1 - prefix % 2 :: 2]
    keys = F.normalize(keys, dim=-1)
    best, partner = (keys[:, a] @ keys[:, b].transpose(1, 2)).max(dim=-1)  # (B, |A|) both
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    leaving, staying = ranked[:, :merged], ranked[:, merged:]
    if prefix:  # the reference implementation keeps the order where there is a class token
        staying = staying.sort(dim=-1).values
    left = staying.shape[1]
    to_a = torch.empty_like(ranked)
    to_a.scatter_(1, staying, torch.arange(left, device=keys.device).expand_as(staying))
    to_a.scatter_(1, leaving, left + partner.gather(1, leaving))
    to = torch.empty(B, n, dtype=torch.long, device=keys.device)
    to[:, a] = to_a
    to[:, b] = left + torch.arange(len(b), device=keys.device)
    return to


@reducer("tome")
class ToMe(Reducer):
    """Merges r pairs of patch tokens between attention and MLP of every block.

    A merged token is the mean of the patches it stands for, and draws as much attention as they
    would (proportional attention, Eq. 1).

    Args:
        r: pairs merged per block; a fraction below 1 is a share of the sequence's first length; a
            list gives one number per block. At most half of the tokens merge at once.
        proportional: add log(size) to the attention logits. The paper leaves it out for models
            trained as masked autoencoders and not fine-tuned.
    """

    def __init__(
        self, shape: Shape, *, r: float | Sequence[int] = 13, proportional: bool = True
    ) -> None:
        super().__init__()
        if isinstance(r, Sequence):
            if len(r) != shape.depth:
                raise ConfigError(f"reducer.r={list(r)} needs one number per block: {shape.depth}")
            for number in r:
                check_whole("reducer.r", number, 0)
        elif isinstance(r, int):
            check_whole("reducer.r", r, 0)
        else:
            check_range("reducer.r", r, 0, 1, below=True)
        if not isinstance(proportional, bool):
            raise ConfigError(f"reducer.proportional={proportional!r} must be true or false")
        self.r = r
        self.proportional = proportional
        self.head_dim = shape.head_dim

    def _merged(self, index: int, count: int, start: int) -> int:
        r = self.r[index] if isinstance(self.r, Sequence) else self.r
        return min(r if isinstance(r, int) else round(r * start), count // 2)

    def key_bias(self, carried: Carried) -> Tensor | None:
        if not self.proportional or carried.length == carried.start:
            return None
        return F.pad(carried.sizes().log(), (carried.prefix, 0))[:, None, None]

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, carried: Carried
    ) -> tuple[Tensor, Any]:
        mixed, _ = super().attention(index, attn, q, k, v, bias, carried)
        return mixed, k[:, :, carried.prefix :].mean(dim=1)  # (B, length, d)

    def shorten(
        self, index: int, tokens: Tensor, seen: Any, carried: Carried
    ) -> tuple[Tensor, Carried]:
        merged = self._merged(index, carried.length, carried.start)
        if merged == 0:
            return tokens, carried
        with torch.no_grad():
            to = match(seen, merged, carried.prefix)
        count = carried.length - merged
        sizes = carried.sizes()[:, :, None]  # (B, length, 1)
        patches = tokens[:, carried.prefix :]
        weighted = patches * sizes  # at least float32
        sums = weighted.new_zeros(patches.shape[0], count, patches.shape[2])
        sums = sums.scatter_add(1, to[:, :, None].expand_as(patches), weighted)
        carried = carried.moved(to, count)
        means = sums / carried.sizes()[:, :, None]
        return torch.cat([tokens[:, : carried.prefix], means.to(tokens.dtype)], dim=1), carried

    def lengths(self, index: int, count: int, start: int) -> tuple[int, int]:
        return count, count - self._merged(index, count, start)

    def extra_macs(self, index: int, count: int, start: int, prefix: int) -> int:
        """The similarity of every token of A to every token of B."""
        half = count // 2
        return half * (count - half) * self.head_dim if self._merged(index, count, start) else 0

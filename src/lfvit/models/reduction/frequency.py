"""Frequency-aware token reduction (Lee et al., NeurIPS 2025, arXiv 2511.21477)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.attention import attention_weights, mix
from lfvit.models.indexing import kept_count, split, take
from lfvit.models.reduction.registry import Carried, Reducer, Shape, check_blocks, reducer
from lfvit.utils.validation import check_range, check_whole


class Bands(NamedTuple):
    """The patch tokens of a reduced sequence: first the high-frequency ones, then the DC tokens.

    high: (B, n_high), which of the sequence's first patch tokens each high-frequency token is.
    merged: (B, w * w), how many patches each DC token stands for, one per window of the image;
        0 where a window has lost no token yet: such a slot is not a token, nothing attends to it.
    windows: w.
    """

    high: Tensor
    merged: Tensor
    windows: int

    @property
    def n_high(self) -> int:
        return int(self.high.shape[1])


@reducer("frequency")
class Frequency(Reducer):
    """Keeps the high-frequency tokens, averages the others into DC tokens, reweights attention.

    A token's score is the attention it receives, averaged over heads and queries: up to a constant,
    its column mean in the high-pass part A_HP = A - 11^T/n of the attention (Eq. 5-7). In a
    reducing block the lowest-scoring tokens are averaged into one DC token per window of the image
    (Eq. 10). From then on, in every block and head (Eq. 12),

        A^ = A_LP + (1 + w1) A_HP + (1 + w2) A_DC,

    with A_LP = 11^T/n and A_DC the columns of the DC tokens in A. Applied to the values V this is
    A (c V) - w1 mean(V) with c = 1 + w1 on every token and 1 + w2 more on the DC tokens, so that
    fused attention serves every block that does not reduce.

    Two readings, where the paper does not settle them: at a later reduction, the DC tokens of a
    window and the tokens it newly loses are averaged, each weighted by the number of patches it
    stands for; and the position term added to a DC token is the mean position embedding of the
    patches it replaces.

    Args:
        removed: share of the high-frequency tokens removed in each reducing block, in [0, 1); one
            number for all or one per block.
        blocks: the reducing blocks, from 1; None is 4, 7, 10 of 12.
        windows: w per reducing block, for w * w DC tokens; each a divisor of the one before. The
            published setting is 2, 1, 1, and 2, 2, 1 for ViT-S.
        w1_init, w2_init: what the learned w1, w2 start from; the paper does not say. 0 and -1 leave
            the attention of a pretrained model as it is.
        position_term: whether DC tokens get one.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        removed: float | Sequence[float] = 0.3,
        blocks: Sequence[int] | None = None,
        windows: int | Sequence[int] = (2, 1, 1),
        w1_init: float = 0.0,
        w2_init: float = -1.0,
        position_term: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = check_blocks(blocks, shape.depth)
        self.removed = _per_block("removed", removed, len(self.blocks))
        self.windows = _per_block("windows", windows, len(self.blocks))
        for share in self.removed:
            check_range("reducer.removed", share, 0, 1, below=True)
        for w in self.windows:
            check_whole("reducer.windows", w, 1)
        check_range("reducer.w1_init", w1_init, -math.inf)
        check_range("reducer.w2_init", w2_init, -math.inf)
        for before, after in zip(self.windows, self.windows[1:], strict=False):
            if before % after:
                raise ConfigError(
                    f"reducer.windows={self.windows}: {after} does not divide {before}, so that "
                    "its windows cut through earlier ones; valid: such as [4, 2, 1]"
                )
        if not isinstance(position_term, bool):
            raise ConfigError(f"reducer.position_term={position_term!r} must be true or false")
        self.position_term = position_term
        self.first = self.blocks[0] + 1  # first block with DC tokens
        reweighted = (shape.depth - self.first, shape.num_heads)
        self.w1 = nn.Parameter(torch.full(reweighted, float(w1_init)))
        self.w2 = nn.Parameter(torch.full(reweighted, float(w2_init)))

    def no_weight_decay(self) -> set[str]:
        """w1 and w2 are one number per block and head; 0 is no neutral value of w2."""
        return {"w1", "w2"}

    def start(self, carried: Carried) -> Carried:
        high = carried.owner  # every token is high-frequency, and itself
        return carried._replace(memory=Bands(high, high.new_zeros(high.shape[0], 0), 0))

    def key_bias(self, carried: Carried) -> Tensor | None:
        if carried.memory.windows < 2:  # a single DC token always stands for something
            return None
        missing = (~self._real(carried))[:, None, None]
        return torch.zeros_like(missing, dtype=torch.float32).masked_fill(missing, -torch.inf)

    def _real(self, carried: Carried) -> Tensor:
        """(B, N): whether there is a token, or the empty slot of a window that lost none."""
        bands = carried.memory
        present = torch.ones_like(bands.high[:, :1], dtype=torch.bool)
        tokens = present.expand(-1, carried.prefix + bands.n_high)
        return torch.cat([tokens, bands.merged > 0], dim=1)

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, carried: Carried
    ) -> tuple[Tensor, Any]:
        reduced = carried.memory.windows > 0
        if reduced:
            real = self._real(carried)[:, None, :, None]  # (B, 1, N, 1)
            row = index - self.first
            w1, w2 = (w[row].to(v.dtype)[None, :, None, None] for w in (self.w1, self.w2))
            mean = (v * real).sum(dim=2, keepdim=True) / real.sum(dim=2, keepdim=True)
            dc = torch.arange(v.shape[2], device=v.device) >= v.shape[2] - carried.memory.windows**2
            v = v * (1 + w1 + (1 + w2) * dc[:, None].to(v.dtype))
        if not self._removes(index, carried):
            mixed, scores = mix(attn, q, k, v, bias), None
        else:
            weights = attention_weights(attn, q, k, bias)  # (B, H, N, N)
            mixed = nn.functional.dropout(weights, attn.attn_drop.p, attn.training) @ v
            scores = weights.detach().float().mean(dim=1)  # (B, N, N)
            if reduced:  # only tokens ask
                scores = scores * real[:, 0]
            scores = scores.sum(dim=1)[:, carried.prefix :]  # (B, length)
        return (mixed - w1 * mean if reduced else mixed), scores

    def shorten(
        self, index: int, tokens: Tensor, seen: Any, carried: Carried
    ) -> tuple[Tensor, Carried]:
        if seen is None:
            return tokens, carried
        bands, prefix = carried.memory, carried.prefix
        step = self.blocks.index(index)
        w, n_high = self.windows[step], bands.n_high
        keep = kept_count(1 - self.removed[step], n_high)
        kept, lost = split(seen[:, :n_high], keep)
        patches = tokens[:, prefix:]
        high, dc = patches[:, :n_high], patches[:, n_high:]

        gone = bands.high.gather(1, lost)  # (B, n_lost) among the first patch tokens
        window = _window(carried.layout.places, w).expand(tokens.shape[0], -1).gather(1, gone)
        leaving = take(high, lost)
        positions = carried.layout.positions
        if self.position_term and positions is not None:
            leaving = leaving + take(positions.expand(tokens.shape[0], -1, -1), gone)
        into = torch.cat([window, _coarser(bands, w)], dim=1)
        summed = torch.cat([leaving.float(), dc.float() * bands.merged[:, :, None]], dim=1)
        sums = summed.new_zeros(tokens.shape[0], w * w, summed.shape[2])
        sums = sums.scatter_add(1, into[:, :, None].expand_as(summed), summed)
        sizes = torch.cat([torch.ones_like(window), bands.merged], dim=1)
        merged = torch.zeros_like(sums[:, :, 0], dtype=torch.long).scatter_add(1, into, sizes)
        means = (sums / merged.clamp(min=1)[:, :, None]).to(tokens.dtype)  # 0 in an empty window

        to = torch.empty_like(seen, dtype=torch.long)
        to[:, n_high:] = keep + into[:, lost.shape[1] :]
        to = to.scatter(1, lost, keep + window)
        to = to.scatter(1, kept, torch.arange(keep, device=kept.device).expand_as(kept))
        memory = Bands(bands.high.gather(1, kept), merged, w)
        tokens = torch.cat([tokens[:, :prefix], take(high, kept), means], dim=1)
        return tokens, carried.moved(to, keep + w * w, memory)

    def _removes(self, index: int, carried: Carried) -> bool:
        return self._kept(index, n := carried.memory.n_high) < n

    def _kept(self, index: int, n_high: int) -> int:
        """High-frequency tokens left after block `index`."""
        if index not in self.blocks:
            return n_high
        return max(kept_count(1 - self.removed[self.blocks.index(index)], n_high), 1)

    def lengths(self, index: int, count: int, start: int) -> tuple[int, int]:
        n_high, dc = start, 0
        for block in self.blocks:
            keep = self._kept(block, n_high)
            if keep < n_high and block <= index:
                before = n_high + dc
                n_high, dc = keep, self.windows[self.blocks.index(block)] ** 2
                if block == index:
                    return before, n_high + dc
        return count, count


def _window(places: Tensor, windows: int) -> Tensor:
    """Which of w * w windows of the image, row-major, places (B, n, 2) lie in: (B, n)."""
    row, column = (places * windows).long().unbind(-1)
    return row * windows + column


def _coarser(bands: Bands, windows: int) -> Tensor:
    """Which of fewer windows holds each window there is: (B, w * w)."""
    numbers = torch.arange(bands.windows**2, device=bands.merged.device)
    step = max(bands.windows // windows, 1)
    row, column = numbers // max(bands.windows, 1) // step, numbers % max(bands.windows, 1) // step
    return (row * windows + column).expand(bands.merged.shape[0], -1)


def _per_block(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ConfigError(f"reducer.{name}={values} needs one value per reducing block: {count}")
    return values

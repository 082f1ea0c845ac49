"""Frequency-aware token reduction (Lee et al., NeurIPS 2025, arXiv 2511.21477)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lfvit.models.blocks import attend, attention_weights
from lfvit.models.reducer_settings import FrequencySettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, num_keep, split_topk


class Bands(NamedTuple):
    """The patch tokens of a reduced sequence: first the high-frequency ones, then the DC tokens.

    high: (B, n_high), index of each high-frequency token among the patches of the start.
    dc_size: (B, w * w), how many patches each DC token stands for, one per window of the image;
        0 for a window that has lost no token yet: such a slot is no token, nothing attends to it.
    windows: w, 0 before the first reduction.
    """

    high: Tensor
    dc_size: Tensor
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
    """

    settings_type = FrequencySettings

    def __init__(self, settings: FrequencySettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.removed = dict(zip(self.blocks, self.per_block("removed"), strict=True))
        self.windows = dict(zip(self.blocks, self.per_block("windows"), strict=True))
        self.first = self.blocks[0] + 1  # first block with DC tokens
        reweighted = (len(vit.blocks) - self.first, vit.blocks[0].attn.num_heads)
        self.w1 = nn.Parameter(torch.full(reweighted, float(settings.w1_init)))
        self.w2 = nn.Parameter(torch.full(reweighted, float(settings.w2_init)))

    def no_weight_decay(self) -> set[str]:
        """w1 and w2 are one number per block and head; 0 is no neutral value of w2."""
        return {"w1", "w2"}

    def start(self, state: TokenState) -> TokenState:
        high = state.source  # every token is high-frequency, and its own source
        return state._replace(memory=Bands(high, high.new_zeros(high.shape[0], 0), 0))

    def attention_bias(self, state: TokenState) -> Tensor | None:
        if state.memory.windows < 2:  # a single DC token always stands for some patch
            return None
        empty = (~self._is_token(state))[:, None, None]
        return torch.zeros_like(empty, dtype=torch.float32).masked_fill(empty, -torch.inf)

    def _is_token(self, state: TokenState) -> Tensor:
        """(B, N) bool, False at the slots of windows that have lost no token."""
        bands = state.memory
        ones = torch.ones_like(bands.high[:, :1], dtype=torch.bool)
        ones = ones.expand(-1, state.num_prefix_tokens + bands.n_high)
        return torch.cat([ones, bands.dc_size > 0], dim=1)

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        num_dc = state.memory.windows**2
        if num_dc:
            is_token = self._is_token(state)[:, None, :, None]  # (B, 1, N, 1)
            row = index - self.first
            w1, w2 = (w[row].to(v.dtype)[None, :, None, None] for w in (self.w1, self.w2))
            mean = (v * is_token).sum(dim=2, keepdim=True) / is_token.sum(dim=2, keepdim=True)
            is_dc = torch.arange(v.shape[2], device=v.device) >= v.shape[2] - num_dc
            v = v * (1 + w1 + (1 + w2) * is_dc[:, None].to(v.dtype))
        if self._num_high(index, state) == state.memory.n_high:
            x, scores = attend(attn, q, k, v, bias), None
        else:
            weights = attention_weights(attn, q, k, bias)  # (B, H, N, N)
            x = nn.functional.dropout(weights, attn.attn_drop.p, attn.training) @ v
            scores = weights.detach().float().mean(dim=1)  # (B, N, N)
            if num_dc:  # empty slots are no queries
                scores = scores * is_token[:, 0]
            scores = scores.sum(dim=1)[:, state.num_prefix_tokens :]  # (B, n)
        return (x - w1 * mean if num_dc else x), scores

    def _num_high(self, index: int, state: TokenState) -> int:
        """High-frequency tokens left after block `index`."""
        n_high = state.memory.n_high
        return max(num_keep(1 - self.removed.get(index, 0), n_high), 1)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None:
            return tokens, state
        B, bands = tokens.shape[0], state.memory
        n_high, k = bands.n_high, self._num_high(index, state)
        w = self.windows[index]
        kept, removed = split_topk(metric[:, :n_high], k)
        prefix, high, dc = tokens.tensor_split(
            [state.num_prefix_tokens, state.num_prefix_tokens + n_high], dim=1
        )

        patch = bands.high.gather(1, removed)  # (B, n_removed), among the patches of the start
        window = _window_of(state.layout.centers, w).expand(B, -1).gather(1, patch)
        leaving = gather_tokens(high, removed)
        pos_embed = state.layout.pos_embed
        if self.settings.position_term and pos_embed is not None:
            leaving = leaving + gather_tokens(pos_embed.expand(B, -1, -1), patch)
        into = torch.cat([window, _coarser_window(bands, w)], dim=1)  # (B, n_removed + n_dc)
        weighted = torch.cat([leaving.float(), dc.float() * bands.dc_size[:, :, None]], dim=1)
        sums = weighted.new_zeros(B, w * w, weighted.shape[2])
        sums = sums.scatter_add(1, into[:, :, None].expand_as(weighted), weighted)
        sizes = torch.cat([torch.ones_like(window), bands.dc_size], dim=1)
        dc_size = torch.zeros_like(sums[:, :, 0], dtype=torch.long).scatter_add(1, into, sizes)
        means = (sums / dc_size.clamp(min=1)[:, :, None]).to(tokens.dtype)  # 0 in an empty slot

        index_of = torch.empty_like(metric, dtype=torch.long)
        index_of[:, n_high:] = k + into[:, removed.shape[1] :]
        index_of = index_of.scatter(1, removed, k + window)
        index_of = index_of.scatter(1, kept, torch.arange(k, device=kept.device).expand_as(kept))
        memory = Bands(bands.high.gather(1, kept), dc_size, w)
        tokens = torch.cat([prefix, gather_tokens(high, kept), means], dim=1)
        return tokens, state.remap(index_of, k + w * w, memory)


def _window_of(centers: Tensor, windows: int) -> Tensor:
    """Which of w * w windows of the image, row-major, centers (B, n, 2) lie in: (B, n)."""
    row, column = (centers * windows).long().unbind(-1)
    return row * windows + column


def _coarser_window(bands: Bands, windows: int) -> Tensor:
    """Which of fewer windows holds each window of `bands`: (B, w * w)."""
    numbers = torch.arange(bands.windows**2, device=bands.dc_size.device)
    step = max(bands.windows // windows, 1)
    row, column = numbers // max(bands.windows, 1) // step, numbers % max(bands.windows, 1) // step
    return (row * windows + column).expand(bands.dc_size.shape[0], -1)

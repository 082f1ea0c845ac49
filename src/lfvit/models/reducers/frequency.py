"""Frequency-aware token reduction (Lee et al., NeurIPS 2025, arXiv 2511.21477)."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.models.blocks import attend, attention_weights, padding_bias
from lfvit.models.reducer_settings import FrequencySettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, merge_tokens, num_keep, split_topk


class Bands(NamedTuple):
    """The patch tokens of a reduced sequence: first the high-frequency ones, then the DC tokens.

    There is one DC token per window of the image. One that stands for no patch, since its window
    has lost no token yet, is an empty slot that nothing attends to.

    high: (B, n_high), index of each high-frequency token among the patches of the start.
    windows: w, for w * w DC tokens; 0 before the first reduction.
    """

    high: Tensor
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
        return state._replace(memory=Bands(state.source, 0))  # all are high-frequency

    def attention_bias(self, state: TokenState) -> Tensor | None:
        if state.memory.windows < 2:  # a single DC token always stands for some patch
            return None
        return padding_bias(state.size() > 0, state.num_prefix_tokens)

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        num_dc, p = state.memory.windows**2, state.num_prefix_tokens
        if num_dc:
            is_token = F.pad(state.size() > 0, (p, 0), value=True)[:, None, :, None]  # (B, 1, N, 1)
            row = index - self.first
            w1, w2 = (w[row].to(v.dtype)[None, :, None, None] for w in (self.w1, self.w2))
            mean = (v * is_token).sum(dim=2, keepdim=True) / is_token.sum(dim=2, keepdim=True)
            is_dc = torch.arange(v.shape[2], device=v.device) >= v.shape[2] - num_dc
            v = v * (1 + w1 + (1 + w2) * is_dc[:, None].to(v.dtype))
        if self._num_high(index, state) == state.memory.n_high:
            x, scores = attend(attn, q, k, v, bias), None
        else:
            weights = attention_weights(attn, q, k, bias)  # (B, H, N, N)
            x = F.dropout(weights, attn.attn_drop.p, attn.training) @ v
            scores = weights.detach().float().mean(dim=1)  # (B, N, N)
            if num_dc:  # empty slots are no queries
                scores = scores * is_token[:, 0]
            scores = scores.sum(dim=1)[:, p:]  # (B, n)
        return (x - w1 * mean if num_dc else x), scores

    def _num_high(self, index: int, state: TokenState) -> int:
        """High-frequency tokens left after block `index`."""
        return max(num_keep(1 - self.removed.get(index, 0), state.memory.n_high), 1)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None:
            return tokens, state
        high, w, k = state.memory.high, self.windows[index], self._num_high(index, state)
        kept, removed = split_topk(metric[:, : high.shape[1]], k)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        pos_embed = state.layout.pos_embed
        if self.settings.position_term and pos_embed is not None:
            pos_embed = pos_embed.expand(tokens.shape[0], -1, -1)
            term = gather_tokens(pos_embed, high.gather(1, removed)).to(patches.dtype)
            patches = patches.scatter_add(1, removed[:, :, None].expand_as(term), term)
        row, column = (state.layout.centers * w).long().unbind(-1)
        window = (row * w + column).expand_as(state.source)  # (B, patches of the start)
        # a token goes to the window of the patches that it stands for: windows nest
        place = torch.zeros_like(metric, dtype=torch.long).scatter(1, state.source, k + window)
        numbers = torch.arange(k, device=kept.device)
        place = place.scatter(1, kept, numbers.expand_as(kept))  # (B, n)
        merged = merge_tokens(patches, place, k + w * w, state.size())
        memory = Bands(high.gather(1, kept), w)
        return torch.cat([prefix, merged], dim=1), state.remap(place, k + w * w, memory)

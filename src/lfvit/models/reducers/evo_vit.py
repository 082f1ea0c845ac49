"""Evo-ViT (Xu et al., AAAI 2022): no token leaves, but most are updated through one for all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lfvit.models.blocks import class_attention
from lfvit.models.reducer_settings import EvoViTSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, split_topk


class Stage(NamedTuple):
    """What a stage must remember.

    score: (B, n), average of the class attention. kept: (B, k), slow tokens; None before the first
    stage. others: (B, n - k), fast tokens. fast (B, n - k, D), representative (B, 1, D): as the
    stage began.
    """

    score: Tensor
    kept: Tensor | None = None
    others: Tensor | None = None
    fast: Any = None
    representative: Any = None


@reducer("evo_vit")
class EvoViT(Reducer):
    """In every stage of blocks, the tokens of high class attention are slow, the others fast.

    The class attention is averaged over the blocks so far (global class attention). When a stage
    begins, the fast tokens make a representative, their mean weighted by it. Slow tokens and the
    representative go through the blocks; at the end, what the blocks have added to it is added to
    every fast token, and all tokens are back in their places. (The authors' code for DeiT leaves
    the representative out, the one for LeViT has it.)
    """

    settings_type = EvoViTSettings
    needs_class_token = True
    parts = 3

    def __init__(self, settings: EvoViTSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.stages, self.blocks = self.blocks, list(range(len(vit.blocks)))

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        x, _ = super().attention(index, attn, q, k, v, bias, state)
        if self.settings.keep_rate == 1 or index >= self.stages[-1]:
            return x, None
        return x, class_attention(attn, q, k)[:, state.num_prefix_tokens - 1 :]  # (B, tokens)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        """Only keeps the average of the class attention; fast tokens keep theirs."""
        stage, share = state.memory, self.settings.tradeoff
        if metric is not None and stage is None:
            stage = Stage(metric)
        elif metric is not None and stage.kept is None:
            stage = Stage((1 - share) * stage.score + share * metric)
        elif metric is not None:
            slow = metric[:, : stage.kept.shape[1]]
            slow = (1 - share) * stage.score.gather(1, stage.kept) + share * slow
            stage = stage._replace(score=stage.score.scatter(1, stage.kept, slow))
        return tokens, state._replace(memory=stage)

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        n = state.num_patches
        k = max(int(round(self.settings.keep_rate * n, 9)), 1)
        if index not in self.stages or k == n or state.memory is None:  # no attention before it
            return tokens, state
        tokens, state = self.finish(tokens, state)
        score = state.memory.score
        kept, others = split_topk(score, k)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        weights = score.gather(1, others)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
        fast = gather_tokens(patches, others)
        representative = weights[:, None].to(fast.dtype) @ fast  # (B, 1, D)
        tokens = torch.cat([prefix, gather_tokens(patches, kept), representative], dim=1)
        stage = Stage(score, kept, others, fast, representative)
        return tokens, state.keep(kept, k + 1)._replace(memory=stage)

    def finish(self, tokens: Tensor, state: TokenState) -> Reduced:
        stage = state.memory
        if stage is None or stage.kept is None:
            return tokens, state
        p, k = state.num_prefix_tokens, stage.kept.shape[1]
        prefix, slow, representative = tokens.tensor_split([p, p + k], dim=1)
        fast = stage.fast + (representative - stage.representative)
        order = torch.cat([stage.kept, stage.others], dim=1).argsort(dim=1)  # (B, n)
        patches = gather_tokens(torch.cat([slow, fast], dim=1), order)
        source = torch.arange(state.num_patches, device=order.device).expand_as(order)
        state = state._replace(source=source, num_tokens=state.num_patches)
        return torch.cat([prefix, patches], dim=1), state._replace(memory=Stage(stage.score))

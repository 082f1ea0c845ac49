"""ATS (Fayyaz et al., Adaptive Token Sampling, ECCV 2022): as many tokens as the image needs."""

from typing import Any

import torch
from torch import Tensor

from lfvit.models.blocks import class_attention, padding_bias
from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens


def inverse_transform_sample(scores: Tensor, samples: int) -> Tensor:
    """Tokens at the midpoints of `samples` equal parts of the scores' distribution.

    Args:
        scores: (B, n), not negative, with a sum above zero.

    Returns:
        (B, n) bool: where the cumulated scores are nearest to a midpoint, at least one and at most
        `samples` per row.
    """
    shares = scores / scores.sum(dim=1, keepdim=True)  # (B, n)
    # not cumsum, which on a GPU has no deterministic form
    upto = shares.new_ones(shares.shape[1], shares.shape[1]).tril()  # (n, n)
    cumulated = (shares[:, None] * upto).sum(dim=-1)  # (B, n)
    points = (torch.arange(samples, device=scores.device) + 0.5) / samples  # (samples,)
    nearest = (cumulated[:, None] - points[:, None]).abs().argmin(dim=-1)  # (B, samples)
    return torch.zeros_like(scores).scatter(1, nearest, 1.0) > 0


@reducer("ats")
class ATS(Reducer):
    """In a reducing block, patch tokens are sampled by their significance, often some twice.

    The significance of a token is the class token's attention to it times the norm of its value,
    over all heads. K samples are taken at fixed points of its distribution over the tokens
    (section 3.3), in their order; the authors' code sorts them by significance first. K is
    keep_rate^s of the patch tokens at the start, rounded down, and the tokens that were sampled,
    K or fewer, go on to the MLP. In a batch, places after an image's last token are padding that no
    token attends to.
    """

    settings_type = KeepRateSettings
    needs_class_token = True
    drops = True
    adaptive = True

    def start(self, state: TokenState) -> TokenState:
        """``state.memory``: (B, n) bool, the places that hold a token."""
        return state._replace(memory=torch.ones_like(state.source, dtype=torch.bool))

    def attention_bias(self, state: TokenState) -> Tensor | None:
        if state.num_tokens == state.num_patches:
            return None
        return padding_bias(state.memory, state.num_prefix_tokens)

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        x, _ = super().attention(index, attn, q, k, v, bias, state)
        if index not in self.blocks or self.settings.keep_rate == 1:
            return x, None
        p = state.num_prefix_tokens
        seen = class_attention(attn, q, k, bias, every_head=True)[:, :, p - 1 :]  # (B, H, n)
        return x, (seen * v[:, :, p:].float().norm(dim=-1)).sum(dim=1)  # (B, n)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if metric is None:
            return tokens, state
        samples = self.num_left(index, state.num_patches)
        sampled = inverse_transform_sample(metric.detach() * state.memory, samples)
        counts = sampled.sum(dim=1)  # (B,)
        places = self.longest(counts, min(samples, state.num_tokens))
        kept = sampled.long().argsort(dim=1, descending=True, stable=True)[:, :places]
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        tokens = torch.cat([prefix, gather_tokens(patches, kept)], dim=1)
        is_token = torch.arange(places, device=kept.device) < counts[:, None]  # (B, places)
        return tokens, state.keep(kept, places)._replace(memory=is_token)

"""ToMe (Bolya et al., ICLR 2023): merge the most similar tokens, in every block."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.models.reducer_settings import PairSettings, ToMeSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import merge_tokens
from lfvit.utils.validation import Settings


def bipartite_soft_matching(metric: Tensor, r: int, num_prefix_tokens: int) -> Tensor:
    """Which patch tokens merge into which (section 3).

    The sequence, prefix included, is dealt alternately into A and B. Every token of A is matched to
    the most similar token of B (cosine), and the r most similar pairs merge. Prefix tokens do not.

    Args:
        metric: (B, n, d), keys of the patch tokens, averaged over heads.
        r: pairs to merge, at most n // 2.
        num_prefix_tokens: before the patch tokens; an odd number deals the first one into B.

    Returns:
        (B, n): index of each patch token in the new order, which is the rest of A, then B.
    """
    B, n, _ = metric.shape
    indices = torch.arange(n, device=metric.device)
    a, b = indices[num_prefix_tokens % 2 :: 2], indices[1 - num_prefix_tokens % 2 :: 2]
    metric = F.normalize(metric, dim=-1)
    best, partner = (metric[:, a] @ metric[:, b].transpose(1, 2)).max(dim=-1)  # (B, |A|) both
    ranked = best.argsort(dim=-1, descending=True, stable=True)
    merged, unmerged = ranked[:, :r], ranked[:, r:]
    if num_prefix_tokens:  # the released code keeps the order if there is a class token
        unmerged = unmerged.sort(dim=-1).values
    rest = unmerged.shape[1]
    to_a = torch.empty_like(ranked)
    to_a.scatter_(1, unmerged, torch.arange(rest, device=metric.device).expand_as(unmerged))
    to_a.scatter_(1, merged, rest + partner.gather(1, merged))
    to = torch.empty(B, n, dtype=torch.long, device=metric.device)
    to[:, a] = to_a
    to[:, b] = rest + torch.arange(len(b), device=metric.device)
    return to


class PairReducer(Reducer):
    """Makes one token of each of r pairs of patch tokens, between attention and MLP of every block.

    Raises:
        ConfigError: a slope with one r per block.
    """

    settings_type: ClassVar[type[Settings]] = PairSettings

    def __init__(self, settings: PairSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.r = self.per_block("r")
        if settings.slope and len(settings.r) > 1:
            raise ConfigError(
                f"reducer.slope={settings.slope} makes the numbers of all blocks from one r, not "
                f"from reducer.r={settings.r}"
            )

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        x, _ = super().attention(index, attn, q, k, v, bias, state)
        return x, k[:, :, state.num_prefix_tokens :].mean(dim=1)  # (B, n, d)

    def reduce_tokens(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        r = self.r[index]
        r = round(r * state.num_patches) if r < 1 else int(r)
        if self.settings.slope:
            low = int(r * (1 - self.settings.slope))
            r = int(low + 2 * (r - low) / (len(self.blocks) - 1) * index)
        r = min(r, state.num_tokens // 2)
        if r == 0:
            return tokens, state
        with torch.no_grad():
            to = bipartite_soft_matching(metric, r, state.num_prefix_tokens)  # (B, n)
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        num_tokens = state.num_tokens - r
        merged = self.merge(index, patches, to, num_tokens, state)
        return torch.cat([prefix, merged], dim=1), state.remap(to, num_tokens)

    def merge(
        self, index: int, patches: Tensor, to: Tensor, num_tokens: int, state: TokenState
    ) -> Tensor:
        """Patch tokens (B, n, D) that go to the places (B, n) in block `index`: (B, n - r, D)."""
        raise NotImplementedError


@reducer("tome")
class ToMe(PairReducer):
    """Merges pairs into the mean of the patches they stand for.

    A merged token is attended to as these patches would be (proportional attention, Eq. 1).
    """

    settings_type = ToMeSettings

    def __init__(self, settings: ToMeSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.unmerges = settings.weighted_pool

    def attention_bias(self, state: TokenState) -> Tensor | None:
        if not self.settings.proportional or state.num_tokens == state.num_patches:
            return None
        return F.pad(state.size().log(), (state.num_prefix_tokens, 0))[:, None, None]

    def merge(
        self, index: int, patches: Tensor, to: Tensor, num_tokens: int, state: TokenState
    ) -> Tensor:
        return merge_tokens(patches, to, num_tokens, state.size())

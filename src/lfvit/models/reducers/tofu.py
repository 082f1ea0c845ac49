"""ToFu (Kim et al., Token Fusion, WACV 2024): prune pairs early, merge them later; no training."""

from typing import Any

import torch
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.models.reducer_settings import ToFuSettings
from lfvit.models.reducers import TokenState, reducer
from lfvit.models.reducers.tome import PairReducer
from lfvit.models.tokens import gather_tokens, merge_tokens


@reducer("tofu")
class ToFu(PairReducer):
    """Finds pairs as ToMe, and then keeps one of the two or merges them without losing norm.

    In the first blocks, where a ViT is far from linear, the second token of a pair stands for both
    (pruning). In later blocks they merge by MLERP: the direction of the mean of the tokens, with
    the largest of their norms. (OpenToMe's version divides the mean by the norm of one token; here
    it is by its own.) Attention is not proportional to sizes.
    """

    settings_type = ToFuSettings

    def __init__(self, settings: ToFuSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        given, depth = settings.prune_blocks, len(vit.blocks)
        self.prune_blocks = depth // 2 if given is None else given
        if self.prune_blocks > depth:
            raise ConfigError(
                f"reducer.prune_blocks={given}: the backbone has {depth} blocks; valid: 0 to "
                f"{depth}"
            )

    def merge(
        self, index: int, patches: Tensor, to: Tensor, num_tokens: int, state: TokenState
    ) -> Tensor:
        if index < self.prune_blocks:
            places = torch.arange(to.shape[1], device=to.device)
            a, b = (
                places[state.num_prefix_tokens % 2 :: 2],
                places[1 - state.num_prefix_tokens % 2 :: 2],
            )
            kept = to.new_zeros(to.shape[0], num_tokens)
            for half in (a, b):  # tokens of b last: they stay where one of a joins them
                kept = kept.scatter(1, to[:, half], half.expand(to.shape[0], -1))
            return gather_tokens(patches, kept)
        means = merge_tokens(patches, to, num_tokens, torch.ones_like(patches[:, :, 0]))
        norms = patches.norm(dim=-1)  # (B, n)
        largest = norms.new_zeros(to.shape[0], num_tokens).scatter_reduce(1, to, norms, "amax")
        return torch.nn.functional.normalize(means, dim=-1) * largest[:, :, None]

"""What PatchMerger, Sinkhorn and SiT share: every new token is a mixture of all old ones."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState


class SoftReducer(Reducer):
    """Before a reducing block, learned mixtures take the place of the patch tokens.

    Their number after the s-th reduction is keep_rate^s of the n patch tokens at the start, rounded
    down, and at most that of the images that the ViT was built for. No patch has a token that
    stands for it alone.
    """

    settings_type = KeepRateSettings
    drops = True
    mixer: ClassVar[type[nn.Module]]
    """Made from settings, D and the largest k: patches (B, n, D), k -> weights (B, k, n), and what
    they mix (B, n, D)."""

    def __init__(self, settings: Any, vit: Any) -> None:
        super().__init__(settings, vit)
        n = vit.patch_embed.num_patches
        self.most = [self.num_left(index, n) for index in self.blocks]
        self.mixers = nn.ModuleList(self.mixer(settings, vit.embed_dim, k) for k in self.most)

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        stage = self.blocks.index(index)
        k = min(self.num_left(index, state.num_patches), self.most[stage])
        if k >= state.num_tokens:
            return tokens, state
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        weights, values = self.mixers[stage](patches, k)
        tokens = torch.cat([prefix, weights @ values], dim=1)
        return tokens, state.remap(weights.argmax(dim=1), k)

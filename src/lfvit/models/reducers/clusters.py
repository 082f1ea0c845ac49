"""What DPC-KNN, K-Medoids, PatchMerger, Sinkhorn and SiT share: new tokens in place of all."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState


class ClusterReducer(Reducer):
    """Before a reducing block, fewer tokens take the place of the patch tokens.

    Their number after the s-th reduction is keep_rate^s of the n patch tokens at the start, rounded
    down.
    """

    settings_type: ClassVar[Any] = KeepRateSettings

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        k = self.num_left(index, state.num_patches)
        if k >= state.num_tokens:
            return tokens, state
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        new, place = self.cluster(index, patches, k, metric)
        return torch.cat([prefix, new], dim=1), state.remap(place, new.shape[1])

    def cluster(self, index: int, patches: Tensor, k: int, metric: Any) -> tuple[Tensor, Tensor]:
        """New tokens (B, k, D) for the patch tokens (B, n, D), and where each of these went (B, n).

        metric: of the block before, see `attention`.
        """
        raise NotImplementedError


class SoftReducer(ClusterReducer):
    """Learned mixtures take the place of the patch tokens.

    There are at most as many as for the images that the ViT was built for. No patch has a token
    that stands for it alone.
    """

    drops = True
    mixer: ClassVar[type[nn.Module]]
    """Made from settings, D and the largest k: patches (B, n, D), k -> weights (B, k, n), and what
    they mix (B, n, D)."""

    def __init__(self, settings: Any, vit: Any) -> None:
        super().__init__(settings, vit)
        n = vit.patch_embed.num_patches
        self.most = {index: super(SoftReducer, self).num_left(index, n) for index in self.blocks}
        most = self.most.values()
        self.mixers = nn.ModuleList(self.mixer(settings, vit.embed_dim, k) for k in most)

    def num_left(self, index: int, n: int) -> int:
        return min(super().num_left(index, n), self.most[index])

    def cluster(self, index: int, patches: Tensor, k: int, metric: Any) -> tuple[Tensor, Tensor]:
        weights, values = self.mixers[self.blocks.index(index)](patches, k)
        return weights @ values, weights.argmax(dim=1)

"""PatchMerger (Renggli et al. 2022, arXiv 2202.12015): learned queries attend to the tokens."""

import torch
from torch import Tensor, nn

from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import reducer
from lfvit.models.reducers.clusters import SoftReducer


class QueryMixer(nn.Module):
    """softmax(Q X^T) X with X the normed tokens, not scaled, and Q (k, D) learned."""

    def __init__(self, settings: KeepRateSettings, dim: int, k: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(k, dim))

    def forward(self, patches: Tensor, k: int) -> tuple[Tensor, Tensor]:
        patches = self.norm(patches)
        logits = nn.functional.linear(patches, self.queries[:k])  # (B, n, k)
        return logits.softmax(dim=1).transpose(1, 2), patches


@reducer("patch_merger")
class PatchMerger(SoftReducer):
    """Each new token is a learned query's attention over the patch tokens."""

    mixer = QueryMixer

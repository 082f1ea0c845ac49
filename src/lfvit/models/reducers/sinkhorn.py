"""Sinkhorn (Haurum et al. 2022, arXiv 2207.09969): optimal transport to learned centres."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.models.reducer_settings import SinkhornSettings
from lfvit.models.reducers import reducer
from lfvit.models.reducers.clusters import SoftReducer


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Scale the rows and columns of exp(logits) in turn, in log space, columns last.

    Args:
        logits: (B, k, n)

    Returns:
        (B, k, n): every column sums to one, and the rows are nearly as even as that allows.
    """
    rows = torch.zeros_like(logits[:, :, :1])  # (B, k, 1)
    columns = torch.zeros_like(logits[:, :1])  # (B, 1, n)
    for _ in range(iterations):
        rows = -(logits + columns).logsumexp(dim=2, keepdim=True)
        columns = -(logits + rows).logsumexp(dim=1, keepdim=True)
    return (logits + rows + columns).exp()


class CenterMixer(nn.Module):
    """Sums of normalised tokens, which are shared out among centres (k, D) by cosine similarity."""

    def __init__(self, settings: SinkhornSettings, dim: int, k: int) -> None:
        super().__init__()
        self.settings = settings
        self.centers = nn.Parameter(torch.randn(k, dim))

    def forward(self, patches: Tensor, k: int) -> tuple[Tensor, Tensor]:
        patches = F.normalize(patches, dim=-1)
        similarity = F.linear(patches, F.normalize(self.centers[:k], dim=-1))  # (B, n, k)
        logits = similarity.transpose(1, 2) / self.settings.temperature
        weights = sinkhorn(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), self.settings.iterations
        )
        return weights.to(patches.dtype), patches


@reducer("sinkhorn")
class Sinkhorn(SoftReducer):
    """Each new token is what optimal transport carries from the patch tokens to a centre."""

    settings_type = SinkhornSettings
    mixer = CenterMixer

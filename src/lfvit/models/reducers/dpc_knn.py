"""DPC-KNN clustering (Zeng et al., TCFormer, CVPR 2022; in a plain ViT: Haurum et al. 2023)."""

from typing import Any

import torch
from torch import Tensor, nn

from lfvit.models.reducer_settings import DPCKNNSettings
from lfvit.models.reducers import reducer
from lfvit.models.reducers.clusters import ClusterReducer
from lfvit.models.tokens import merge_tokens, pairwise_distances, split_topk


def density_peaks(distances: Tensor, num_clusters: int, neighbors: int) -> Tensor:
    """Clusters around the tokens that are dense and far from any denser one (TCFormer).

    Args:
        distances: (B, n, n)
        num_clusters: at most n.
        neighbors: k of the density exp(-mean squared distance of the k nearest tokens).

    Returns:
        (B, n): cluster of each token, that of the nearest centre.
    """
    B, n, _ = distances.shape
    nearest = distances.topk(min(neighbors, n), largest=False).values  # (B, n, k)
    density = (-nearest.square().mean(dim=-1)).exp()  # (B, n)
    denser = density[:, None] > density[:, :, None]  # (B, n, n): token j is denser than token i
    farthest = distances.amax(dim=(1, 2))[:, None, None]
    separation = torch.where(denser, distances, farthest).amin(dim=-1)  # (B, n)
    centers, _ = split_topk(separation * density, num_clusters)
    cluster = distances.gather(2, centers[:, None].expand(-1, n, -1)).argmin(dim=-1)
    numbers = torch.arange(num_clusters, device=centers.device).expand(B, -1)
    return cluster.scatter(1, centers, numbers)  # a centre stays in its own cluster


@reducer("dpc_knn")
class DPCKNN(ClusterReducer):
    """The patch tokens are clustered, and every cluster averaged.

    A token's weight in the average is exp of a linear layer, which starts at zero: all weights are
    equal. Ties of density, which the released code breaks at random, go to the first token.
    """

    settings_type = DPCKNNSettings

    def __init__(self, settings: DPCKNNSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.scores = nn.ModuleList()
        for _ in self.blocks if settings.weighted else ():
            layer = nn.Linear(vit.embed_dim, 1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.scores.append(layer)

    def cluster(self, index: int, patches: Tensor, k: int, metric: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            distances = pairwise_distances(patches) / patches.shape[-1] ** 0.5
            cluster = density_peaks(distances, k, self.settings.neighbors)  # (B, n)
        weights = torch.ones_like(patches[:, :, 0])
        if self.settings.weighted:
            weights = self.scores[self.blocks.index(index)](patches)[:, :, 0].exp()
        return merge_tokens(patches, cluster, k, weights), cluster

"""K-Medoids clustering (Marin et al., Token Pooling, WACV 2023; Haurum et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from lfvit.models.blocks import attention_weights
from lfvit.models.reducer_settings import KMedoidsSettings
from lfvit.models.reducers import TokenState, reducer
from lfvit.models.reducers.clusters import ClusterReducer
from lfvit.models.tokens import gather_tokens, pairwise_distances, topk_indices


def weighted_k_medoids(
    distances: Tensor, weights: Tensor, k: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """K-Medoids from the tokens of largest weight on.

    In turn, every token goes to its nearest medoid, and the medoid of a cluster becomes the token
    whose distances to all of the cluster have the least weighted sum.

    Args:
        distances: (B, n, n)
        weights: (B, n)
        k: medoids.

    Returns:
        The medoids (B, k), and each token's cluster (B, n).
    """
    n = distances.shape[1]
    numbers = torch.arange(k, device=distances.device)
    medoids = topk_indices(weights, k)  # (B, k)
    weighted = weights[:, :, None] * distances  # (B, n, n): what it costs that j stands for i

    def assign(medoids: Tensor) -> Tensor:
        nearest = distances.gather(2, medoids[:, None].expand(-1, n, -1)).argmin(dim=-1)
        return nearest.scatter(1, medoids, numbers.expand_as(medoids))  # (B, n)

    for _ in range(iterations):
        cluster = assign(medoids)
        same = cluster[:, :, None] == cluster[:, None]  # (B, n, n)
        cost = (weighted * same).sum(dim=1)  # (B, n)
        member = cluster[:, None] == numbers[:, None]  # (B, k, n)
        medoids = cost[:, None].where(member, torch.inf).argmin(dim=-1)
    return medoids, assign(medoids)


@reducer("k_medoids")
class KMedoids(ClusterReducer):
    """The patch tokens are clustered, and only the medoids go on.

    A token's weight is the attention it received in the block before, over heads and queries;
    before the first block all weights are equal. In the code of Haurum et al. a medoid is near to
    all tokens, of its cluster or not, and of small weight; here it is as in Token Pooling.
    """

    settings_type = KMedoidsSettings

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        if index + 1 not in self.blocks or self.settings.keep_rate == 1:
            return super().attention(index, attn, q, k, v, bias, state)
        weights = attention_weights(attn, q, k, bias)  # (B, H, N, N)
        received = weights.detach().float().sum(dim=(1, 2))[:, state.num_prefix_tokens :]
        return attn.attn_drop(weights) @ v, received  # (B, n)

    def cluster(self, index: int, patches: Tensor, k: int, metric: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            weights = torch.ones_like(patches[:, :, 0]) if metric is None else metric
            distances = pairwise_distances(patches)
            medoids, cluster = weighted_k_medoids(distances, weights, k, self.settings.iterations)
        return gather_tokens(patches, medoids), cluster

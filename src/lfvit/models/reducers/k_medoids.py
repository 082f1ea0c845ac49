"""K-Medoids clustering (Marin et al., Token Pooling, WACV 2023; Haurum et al. 2023)."""

from typing import Any

import torch
from torch import Tensor

from lfvit.models.blocks import attention_weights
from lfvit.models.reducer_settings import KMedoidsSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
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
class KMedoids(Reducer):
    """Before a reducing block, the patch tokens are clustered, and only the medoids go on.

    Their number after the s-th reduction is keep_rate^s of the n patch tokens at the start, rounded
    down. A token's weight is the attention it received in the block before, over heads and queries;
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

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        k = self.num_left(index, state.num_patches)
        if k == state.num_tokens:
            return tokens, state
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        with torch.no_grad():
            weights = torch.ones_like(patches[:, :, 0]) if metric is None else metric
            distances = pairwise_distances(patches)
            medoids, cluster = weighted_k_medoids(distances, weights, k, self.settings.iterations)
        tokens = torch.cat([prefix, gather_tokens(patches, medoids)], dim=1)
        return tokens, state.remap(cluster, k)

"""Choosing tokens by score, and gathering them."""

import math

from torch import Tensor


def topk_indices(values: Tensor, k: int) -> Tensor:
    """Indices (B, k) of the largest of (B, n) values, largest first.

    A stable sort breaks ties the same way on every device: the lower index comes first.
    """
    return values.argsort(dim=1, descending=True, stable=True)[:, :k]


def split_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices of the k largest of (B, n) values, (B, k), and of the others; both ascending."""
    order = topk_indices(values, values.shape[1])
    return order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Tokens (B, n, D) at indices (B, k): (B, k, D)."""
    return tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[-1]))


def num_keep(ratio: float, n: int) -> int:
    """ceil(ratio * n).

    The product is rounded to 9 decimals first: 0.92 of 25 is 23, not the 24 that the rounding error
    of binary fractions gives.
    """
    return math.ceil(round(ratio * int(n), 9))

"""Choosing tokens by score and picking them out of a sequence."""

import math

from torch import Tensor


def highest(values: Tensor, count: int) -> Tensor:
    """Positions (B, count) of the highest of (B, n) values, in order.

    A stable sort settles equal values the same way on every device: the first one wins.
    """
    return values.argsort(dim=1, descending=True, stable=True)[:, :count]


def split(values: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Positions of the `keep` highest of (B, n) values, and of the others; both ascending."""
    order = highest(values, values.shape[1])
    return order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """tokens (B, n, D) at positions (B, K) -> (B, K, D)."""
    return tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[-1]))


def kept_count(share: float, candidates: int) -> int:
    """How many of `candidates` are kept: ceil(share * candidates).

    The product is rounded to 9 decimals first, so that 0.92 of 25 is 23, not the 24 that the
    rounding error of binary fractions would give.
    """
    return math.ceil(round(share * candidates, 9))

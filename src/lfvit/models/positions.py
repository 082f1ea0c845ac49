"""Position embeddings on another grid."""

from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def resample(positions: Tensor, count: int) -> Tensor:
    """Position embeddings for `count` tokens, bicubic as timm does it.

    A count that is not a square number includes the class token's, which comes first. Where only
    the target has one, it is zero: such a ViT adds no position to its class token.

    Args:
        positions: (1, n, D), n patches of a square grid, with or without the class token.
        count: tokens of the target.

    Returns:
        (1, count, D)

    Raises:
        ValueError: not a square grid, or a class token's position that the target cannot take.
    """
    given, wanted = (int(isqrt(n) ** 2 != n) for n in (positions.shape[1], count))
    sides = [isqrt(n - prefix) for n, prefix in ((positions.shape[1], given), (count, wanted))]
    if sides[0] ** 2 != positions.shape[1] - given or given > wanted:
        raise ValueError(f"{positions.shape[1]} positions do not fit {count} tokens")
    moved = resample_abs_pos_embed(positions, [sides[1]] * 2, num_prefix_tokens=given)
    if wanted > given:
        moved = torch.cat([torch.zeros_like(moved[:, :1]), moved], dim=1)
    return moved

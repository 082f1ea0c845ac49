"""Images and position embeddings at another resolution."""

from math import isqrt

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def downsample(images: Tensor) -> Tensor:
    """Halve the side of normalised images, as both papers' released code does.

    Bilinear with ``align_corners=True`` and no antialiasing; released weights were trained so.

    Args:
        images: (B, 3, S, S), normalised, S even.

    Returns:
        (B, 3, S/2, S/2)
    """
    side = images.shape[-1] // 2
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=True)


def resample_pos_embed(pos_embed: Tensor, num_tokens: int) -> Tensor:
    """Position embeddings for another number of tokens, bicubic, as timm does.

    A number that is not a square includes the class token's position, which comes first. If only
    the target has one, it is zero: such a ViT adds no position to its class token.

    Args:
        pos_embed: (1, n, D), n patches of a square grid, with or without the class token.
        num_tokens: of the target.

    Returns:
        (1, num_tokens, D)

    Raises:
        ValueError: not a square grid, or a class token's position that the target cannot take.
    """
    old, new = pos_embed.shape[1], num_tokens
    old_prefix, new_prefix = int(isqrt(old) ** 2 != old), int(isqrt(new) ** 2 != new)
    grid = isqrt(new - new_prefix)
    if isqrt(old - old_prefix) ** 2 != old - old_prefix or old_prefix > new_prefix:
        raise ValueError(f"{old} positions do not fit {new} tokens")
    resampled = resample_abs_pos_embed(pos_embed, [grid, grid], num_prefix_tokens=old_prefix)
    if new_prefix > old_prefix:
        resampled = torch.cat([torch.zeros_like(resampled[:, :1]), resampled], dim=1)
    return resampled

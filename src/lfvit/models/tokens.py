"""Choosing and gathering tokens, and images and position embeddings at another resolution."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
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


def merge_tokens(tokens: Tensor, index: Tensor, num_tokens: int, weights: Tensor) -> Tensor:
    """Weighted means of the tokens that go to the same place.

    Args:
        tokens: (B, n, D)
        index: (B, n) long, 0 to num_tokens - 1.
        num_tokens: places; one that no token goes to is zero.
        weights: (B, n) float, not negative.

    Returns:
        (B, num_tokens, D)
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    weighted = tokens * weights[:, :, None]  # (B, n, D)
    sums = weighted.new_zeros(tokens.shape[0], num_tokens, tokens.shape[2])
    sums = sums.scatter_add(1, index[:, :, None].expand_as(weighted), weighted)
    totals = torch.zeros_like(sums[:, :, 0]).scatter_add(1, index, weights.to(sums.dtype))
    totals = totals.clamp(min=torch.finfo(totals.dtype).tiny)
    return (sums / totals[:, :, None]).to(tokens.dtype)


def pairwise_distances(tokens: Tensor) -> Tensor:
    """Euclidean distances between tokens (B, n, D): (B, n, n), at least float32."""
    with torch.autocast(tokens.device.type, enabled=False):  # it would round the product
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        squares = tokens.square().sum(dim=-1)  # (B, n)
        products = tokens @ tokens.transpose(1, 2)  # (B, n, n)
        squares = (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0)
        same = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        return squares.masked_fill(same, 0).sqrt()


def num_keep(ratio: float, n: int) -> int:
    """ceil(ratio * n), of the exact product: 0.92 of 25 is 23, not the 24 of binary fractions."""
    return math.ceil(round(ratio * int(n), 9))


def check_image_size(size: Sequence[int], image_size: int) -> None:
    """Refuse images of another height and width than the model's, with a ValueError."""
    height, width = size
    if (height, width) != (image_size, image_size):
        raise ValueError(
            f"images of {height} x {width} pixels, but this model has image_size={image_size}; "
            "create it with the image_size of the data"
        )


def downsample(images: Tensor) -> Tensor:
    """Halve the side of images, as both papers' code does: (B, 3, S, S) -> (B, 3, S/2, S/2).

    Bilinear with ``align_corners=True`` and no antialiasing; released weights were trained so.
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
    old_prefix, new_prefix = (int(math.isqrt(n) ** 2 != n) for n in (old, new))
    grid = math.isqrt(new - new_prefix)
    if math.isqrt(old - old_prefix) ** 2 != old - old_prefix or old_prefix > new_prefix:
        raise ValueError(f"{old} positions do not fit {new} tokens")
    resampled = resample_abs_pos_embed(pos_embed, [grid, grid], num_prefix_tokens=old_prefix)
    if new_prefix > old_prefix:
        resampled = torch.cat([torch.zeros_like(resampled[:, :1]), resampled], dim=1)
    return resampled

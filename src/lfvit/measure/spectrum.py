"""How smooth tokens are: the quantities in the figures of "Frequency-Aware Token Reduction for
Efficient Vision Transformer" (Lee et al., NeurIPS 2025), as functions of tensors.

Self-attention averages, so tokens grow alike with depth: what is left after subtracting their mean,
the high frequencies, shrinks. The mean over all patch tokens of an image is their DC signal. The
class token and other prefix tokens are left out, except as queries in `received_attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.models.tokens import num_keep, topk_indices

FLOOR = 1e-6
"""Amplitudes below this share of a channel's largest one are raised to it."""


def relative_log_amplitude(tokens: Tensor) -> Tensor:
    """How much weaker the highest spatial frequencies are than the mean (their Figure 1).

    Of the 2-D Fourier transform of each channel's g x g map, the mean natural log amplitude on the
    ring max(|u|, |v|) = floor(g / 2) minus that at u = v = 0; averaged over channels. Park & Kim
    (ICLR 2022), whose measure this is, take the corner u = v alone. Compare blocks, not grids: the
    DC amplitude of g * g tokens grows with g^2, that of independent noise with g.

    Args:
        tokens: (B, g*g, D), row-major.

    Returns:
        (B,) float32; 0 where both are equally strong, -2.3 where the ring has a tenth.

    Raises:
        ConfigError: not a square grid of at least 2 x 2.
    """
    g = round(tokens.shape[1] ** 0.5)
    if g * g != tokens.shape[1] or g < 2:
        raise ConfigError(
            f"{tokens.shape[1]} patch tokens are not a square grid of at least 2 x 2, which "
            "spatial frequencies need"
        )
    maps = tokens.float().transpose(1, 2).unflatten(2, (g, g))  # (B, D, g, g)
    amplitude = torch.fft.fft2(maps).abs()
    floor = FLOOR * amplitude.amax(dim=(2, 3), keepdim=True)
    logs = amplitude.clamp(min=floor.clamp(min=torch.finfo(torch.float32).tiny)).log()
    frequency = torch.fft.fftfreq(g, 1 / g, device=tokens.device).abs().round()  # 0, 1, ..., 1
    ring = torch.maximum(frequency[:, None], frequency[None]) == g // 2
    return (logs[:, :, ring].mean(dim=2) - logs[:, :, 0, 0]).mean(dim=1)


def similarity_to_dc(tokens: Tensor) -> Tensor:
    """Cosine similarity of every token to the mean of all: (B, N, D) -> (B, N) float32."""
    tokens = tokens.float()
    return F.cosine_similarity(tokens, tokens.mean(dim=1, keepdim=True), dim=2)


def high_frequency_energy(tokens: Tensor) -> Tensor:
    """Squared distance of every token from the mean of all, in units of the mean squared norm.

    (B, N, D) -> (B, N) float32. The root of its mean over a set of tokens is the set's
    high-frequency amplitude, over all tokens ||X - mean|| / ||X||: 0 if alike, 1 for mean 0.
    """
    tokens = tokens.float()
    energy = (tokens - tokens.mean(dim=1, keepdim=True)).square().sum(dim=2)
    unit = tokens.square().sum(dim=2).mean(dim=1, keepdim=True)
    return energy / unit.clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def received_attention(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention every token receives, averaged over heads and queries: the paper's score (Eq. 5-7).

    One head at a time, so that memory holds B * N * N numbers; in float32.

    Args:
        queries, keys: (B, H, N, d) as they enter the product, after any norm.
        scale: of the logits.

    Returns:
        (B, N), summing to 1.
    """
    received = torch.zeros(queries.shape[0], queries.shape[2], device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for q, k in zip(queries.float().unbind(1), keys.float().unbind(1), strict=True):
            received += (q * scale @ k.transpose(1, 2)).softmax(dim=2).mean(dim=1)
    return received / queries.shape[1]


def high_frequency_set(scores: Tensor, removed: float) -> Tensor:
    """The tokens the method would keep: the share 1 - removed of highest score, rounded up.

    Args:
        scores: (B, N) of the patch tokens, see `received_attention`; the first of equals wins.
        removed: share of low-frequency tokens, in (0, 1).

    Returns:
        (B, N) bool, True for high frequency.

    Raises:
        ConfigError: a share of less than one token.
    """
    tokens = scores.shape[1]
    kept = num_keep(1 - removed, tokens)
    if kept == tokens:
        raise ConfigError(f"removed={removed} of {tokens} tokens is less than one")
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, topk_indices(scores, kept), True)

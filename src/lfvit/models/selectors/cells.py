"""Selectors that keep the best cells anywhere in the grid (CF-ViT)."""

import torch
from torch import Tensor

from lfvit.models.selectors import Choice, Scores, selector
from lfvit.models.tokens import num_keep, topk_indices


def keep_anywhere(values: Tensor, alpha: float) -> Choice:
    """The ceil(alpha*g*g) cells of largest value (B, g, g)."""
    flat = values.flatten(1)
    return Choice(None, topk_indices(flat, num_keep(alpha, flat.shape[1])))


@selector("gca")
def largest_gca(scores: Scores, region_size: int, alpha: float) -> Choice:
    """CF-ViT section 4.1."""
    return keep_anywhere(scores.gca, alpha)


# the ablations of CF-ViT Table 4


@selector("negative_gca")
def smallest_gca(scores: Scores, region_size: int, alpha: float) -> Choice:
    return keep_anywhere(-scores.gca, alpha)


@selector("random_cells")
def random_cells(scores: Scores, region_size: int, alpha: float) -> Choice:
    return keep_anywhere(torch.rand_like(scores.gca), alpha)


@selector("last_class_attention")
def largest_last_attention(scores: Scores, region_size: int, alpha: float) -> Choice:
    """By the last block's class attention, without the average over blocks."""
    return keep_anywhere(scores.last, alpha)


@selector("none")
def whole_image(scores: Scores, region_size: int, alpha: float) -> Choice:
    """Every cell (phase one of training, and an ablation); the settings have no effect."""
    B, g, _ = scores.gca.shape
    return Choice(None, torch.arange(g * g, device=scores.gca.device).expand(B, -1))

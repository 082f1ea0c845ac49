"""Selectors that keep the best cells anywhere in the grid (CF-ViT)."""

import torch
from torch import Tensor

from lfvit.models.indexing import highest, kept_count
from lfvit.models.selection.registry import Choice, Scores, selector


def keep_anywhere(values: Tensor, alpha: float) -> Choice:
    """The ceil(alpha*g*g) cells of highest value: (B, g, g) -> Choice without a window."""
    flat = values.flatten(1)
    return Choice(None, highest(flat, kept_count(alpha, flat.shape[1])))


@selector("gca")
def most_attended(scores: Scores, region_size: int, alpha: float) -> Choice:
    """The cells the class token looks at most (CF-ViT section 4.1)."""
    return keep_anywhere(scores.gca, alpha)


# the ablations of CF-ViT Table 4


@selector("negative_gca")
def least_attended(scores: Scores, region_size: int, alpha: float) -> Choice:
    """The cells the class token looks at least."""
    return keep_anywhere(-scores.gca, alpha)


@selector("random_cells")
def any_cells(scores: Scores, region_size: int, alpha: float) -> Choice:
    """Cells drawn uniformly, without the scores."""
    return keep_anywhere(torch.rand_like(scores.gca), alpha)


@selector("last_class_attention")
def most_attended_last(scores: Scores, region_size: int, alpha: float) -> Choice:
    """The cells the last block's class token looks at most, without averaging over blocks."""
    return keep_anywhere(scores.last, alpha)

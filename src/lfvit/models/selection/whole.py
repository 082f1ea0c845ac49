"""No selection: the whole image becomes fine (phase one of training, and an ablation)."""

import torch

from lfvit.models.selection.registry import Choice, Scores, selector


@selector("none")
def whole_image(scores: Scores, region_size: int, alpha: float) -> Choice:
    """Every cell, whatever its score; region_size and alpha have no effect."""
    cells = torch.arange(scores.gca[0].numel(), device=scores.gca.device)
    return Choice(None, cells.expand(scores.gca.shape[0], -1))

"""No selection: every cell becomes fine (phase one of training, and an ablation)."""

import torch

from lfvit.models.selectors import Choice, Scores, selector


@selector("none")
def whole_image(scores: Scores, region_size: int, alpha: float) -> Choice:
    """Every cell; region_size and alpha have no effect."""
    B, g, _ = scores.gca.shape
    return Choice(None, torch.arange(g * g, device=scores.gca.device).expand(B, -1))

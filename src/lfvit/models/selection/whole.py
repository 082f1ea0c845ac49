"""No selection: the whole image becomes fine (phase one of training, and an ablation)."""

import torch
from torch import Tensor

from lfvit.models.selection.registry import Choice, selector


@selector("none")
def whole_image(gca: Tensor, region_size: int, alpha: float) -> Choice:
    """Every cell, whatever its score; region_size and alpha have no effect."""
    cells = torch.arange(gca[0].numel(), device=gca.device)
    return Choice(None, cells.expand(len(gca), -1))

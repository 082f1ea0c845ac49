"""SiT (Zong et al., ECCV 2022): an MLP says how the tokens mix into fewer."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from lfvit.models.reducer_settings import KeepRateSettings
from lfvit.models.reducers import reducer
from lfvit.models.reducers.clusters import SoftReducer


class TokenSlimming(nn.Module):
    """softmax(MLP(LN(X)) * scale)^T X, over the tokens (section 3.2)."""

    def __init__(self, settings: KeepRateSettings, dim: int, k: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU())
        self.mix = nn.Linear(dim // 2, k)
        self.scale = nn.Parameter(torch.ones(1, 1, 1))
        self.apply(init_weights_vit_timm)

    def forward(self, patches: Tensor, k: int) -> tuple[Tensor, Tensor]:
        logits = F.linear(self.hidden(patches), self.mix.weight[:k], self.mix.bias[:k])
        return (logits * self.scale).softmax(dim=1).transpose(1, 2), patches  # (B, k, n)


@reducer("sit")
class SiT(SoftReducer):
    """Each new token is a convex combination of the patch tokens, with learned weights.

    This is the paper's token slimming module. Its distillation of recovered tokens is not here;
    ``schedule.distill_weight`` distils the logits.
    """

    mixer = TokenSlimming

    def no_weight_decay(self) -> set[str]:
        """The scale is one number."""
        return {f"mixers.{stage}.scale" for stage in range(len(self.mixers))}

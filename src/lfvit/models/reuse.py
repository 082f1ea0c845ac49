"""What the second pass reuses of the first: a term added to its fine tokens."""

from collections.abc import Callable

from timm.layers import Mlp
from torch import Tensor, nn


class MlpReuse(nn.Module):
    """LayerNorm -> Linear(D, hD) -> GELU -> Linear(hD, D) on the first pass's output tokens.

    LF-ViT Eq. 11, CF-ViT section 4.2. Tokens in and out: (B, n, D).
    """

    def __init__(self, dim: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens))


def _mlp(dim: int, mlp_ratio: float, norm_eps: float) -> nn.Module:
    return MlpReuse(dim, mlp_ratio, norm_eps)


def _none(dim: int, mlp_ratio: float, norm_eps: float) -> None:
    """The ablation: fine tokens learn nothing from the first pass."""


REUSE: dict[str, Callable[[int, float, float], nn.Module | None]] = {"mlp": _mlp, "none": _none}
"""Names of ``method.reuse`` -> builder from (embed_dim, mlp_ratio, norm_eps)."""

"""What the second pass reuses of the first: a term added to its tokens."""

from collections.abc import Callable

from timm.layers import Mlp
from torch import Tensor, nn


class Reuse(nn.Module):
    """LayerNorm, then a small network, on the first pass's output tokens (LF-ViT Eq. 11).

    (B, n, D) -> (B, n, D). The result is added to the fine tokens of the same cell, and where the
    flags say so also to the second pass's class token and to the cells that stay coarse (the
    variants of CF-ViT Table 5).
    """

    def __init__(
        self,
        dim: int,
        norm_eps: float,
        mlp: nn.Module,
        *,
        to_class_token: bool = False,
        to_coarse: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.to_class_token = to_class_token
        self.to_coarse = to_coarse

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens))


def _mlp(dim: int, mlp_ratio: float, norm_eps: float) -> Reuse:
    return Reuse(dim, norm_eps, Mlp(dim, int(dim * mlp_ratio)))


def _linear(dim: int, mlp_ratio: float, norm_eps: float) -> Reuse:
    return Reuse(dim, norm_eps, nn.Linear(dim, dim))


def _with_class_token(dim: int, mlp_ratio: float, norm_eps: float) -> Reuse:
    return Reuse(dim, norm_eps, Mlp(dim, int(dim * mlp_ratio)), to_class_token=True)


def _with_uninformative(dim: int, mlp_ratio: float, norm_eps: float) -> Reuse:
    return Reuse(dim, norm_eps, Mlp(dim, int(dim * mlp_ratio)), to_coarse=True)


def _everywhere(dim: int, mlp_ratio: float, norm_eps: float) -> Reuse:
    """Both of the above together, which neither paper tried."""
    mlp = Mlp(dim, int(dim * mlp_ratio))
    return Reuse(dim, norm_eps, mlp, to_class_token=True, to_coarse=True)


def _none(dim: int, mlp_ratio: float, norm_eps: float) -> None:
    """The ablation: the second pass learns nothing from the first."""


REUSE: dict[str, Callable[[int, float, float], Reuse | None]] = {
    "mlp": _mlp,
    "linear": _linear,
    "with_class_token": _with_class_token,
    "with_uninformative": _with_uninformative,
    "everywhere": _everywhere,
    "none": _none,
}
"""Names of ``method.reuse`` -> builder from (embed_dim, mlp_ratio, norm_eps)."""

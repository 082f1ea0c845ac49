"""Feature reuse: what the second pass adds to its tokens from the first pass's output."""

from timm.layers import Mlp
from torch import Tensor, nn

REUSE: dict[str, dict[str, bool] | None] = {
    "mlp": {},
    "linear": {"linear": True},
    "with_class_token": {"to_class_token": True},
    "with_uninformative": {"to_coarse": True},
    "everywhere": {"to_class_token": True, "to_coarse": True},  # in neither paper
    "none": None,
}
"""Names of ``method.reuse`` -> options of `FeatureReuse` (CF-ViT Table 5)."""


class FeatureReuse(nn.Module):
    """LayerNorm, then an MLP, on the first pass's output tokens (LF-ViT Eq. 11).

    (B, n, D) -> (B, n, D), added to the fine tokens of the same coarse cell.

    Args:
        dim: D.
        mlp_ratio: hidden width of the MLP over D.
        norm_eps: of the LayerNorm.
        linear: a single linear layer in place of the MLP.
        to_class_token: also added to the second pass's class token.
        to_coarse: also added to the cells that stay coarse.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        norm_eps: float,
        *,
        linear: bool = False,
        to_class_token: bool = False,
        to_coarse: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = nn.Linear(dim, dim) if linear else Mlp(dim, int(dim * mlp_ratio))
        self.to_class_token = to_class_token
        self.to_coarse = to_coarse

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens))

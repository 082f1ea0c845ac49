"""The two-pass losses."""

import torch.nn.functional as F
from torch import Tensor

LOSSES = ("ce_kl", "ce_ce")


def two_stage_loss(first: Tensor, second: Tensor, targets: Tensor, kind: str = "ce_kl") -> Tensor:
    """What trains both passes at once.

    "ce_kl": CE(second, y) + KL(second || first), the second distribution detached: the second pass
    learns from the label, the first from the second (LF-ViT Eq. 12, CF-ViT Eq. 14).
    "ce_ce": CE(second, y) + CE(first, y) (LF-ViT Table 7).

    Args:
        first, second: logits (B, C).
        targets: class indices (B,) or probabilities (B, C).

    Returns:
        Scalar, mean over the batch, in nats.
    """
    return F.cross_entropy(second, targets) + first_pass_loss(first, second, targets, kind)


def first_pass_loss(first: Tensor, second: Tensor, targets: Tensor, kind: str) -> Tensor:
    """The term that trains the first pass."""
    if kind == "ce_ce":
        return F.cross_entropy(first, targets)
    teacher = second.detach().log_softmax(dim=1)
    return F.kl_div(first.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True)

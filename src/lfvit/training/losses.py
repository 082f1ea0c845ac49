"""The two-pass losses."""

import torch.nn.functional as F
from torch import Tensor


def two_pass_losses(
    first: Tensor,
    second: Tensor,
    targets: Tensor,
    kind: str = "ce_kl",
    second_loss: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What trains both passes at once; their sum is the loss.

    "ce_kl": CE(second, y) + KL(second || first), the second distribution detached: the second pass
    learns from the label, the first from the second (LF-ViT Eq. 12, CF-ViT Eq. 14).
    "ce_ce": CE(second, y) + CE(first, y) (LF-ViT Table 7).

    Args:
        first, second: logits (B, C).
        targets: class indices (B,) or probabilities (B, C).
        second_loss: what the second pass learns from the labels where that is more than
            CE(second, y), see `lfvit.training.token_labels`.

    Returns:
        The terms that train the first and the second pass: scalars, mean over the batch, in nats.
    """
    if second_loss is None:
        second_loss = F.cross_entropy(second, targets)
    if kind == "ce_ce":
        return F.cross_entropy(first, targets), second_loss
    return divergence(first, second), second_loss


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, C): mean over the batch, in nats, teacher detached."""
    return F.kl_div(
        student.log_softmax(dim=1),
        teacher.detach().log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )

"""Losses of models with several passes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pass_losses(
    logits: Sequence[Tensor],
    targets: Tensor,
    kind: str = "ce_kl",
    last_loss: Tensor | None = None,
) -> list[Tensor]:
    """The loss of each pass; their sum trains all passes at once.

    The last pass learns from the labels. What the others learn from depends on `kind`:

    "ce_kl": the distribution of the last pass, detached: KL(last || pass) (LF-ViT Eq. 12, CF-ViT
    Eq. 14).
    "ce_ce": the labels as well (LF-ViT Table 7).

    Args:
        logits: one (B, C) per pass.
        targets: class indices (B,) or probabilities (B, C).
        last_loss: loss of the last pass in place of CE(last, targets), such as
            `lfvit.training.token_labels.token_labelling_loss`.

    Returns:
        One scalar per pass, mean over the batch, in nats.
    """
    *earlier, last = logits
    if last_loss is None:
        last_loss = F.cross_entropy(last, targets)
    if kind == "ce_ce":
        return [*(F.cross_entropy(one, targets) for one in earlier), last_loss]
    return [*(kl_divergence(one, last) for one in earlier), last_loss]


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, C): mean over the batch, in nats, teacher detached."""
    return F.kl_div(
        student.log_softmax(dim=1),
        teacher.detach().log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )

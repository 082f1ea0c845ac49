"""DynamicViT (Rao et al., NeurIPS 2021): small predictors learn which tokens to drop."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.models.indexing import split, take
from lfvit.models.reduction.registry import Carried, Reducer, Shape, check_blocks, reducer
from lfvit.utils.distributed import mean_over_images
from lfvit.utils.validation import check_range

EPS = 1e-6  # keeps rows of masked attention from dividing by zero


class Decisions(NamedTuple):
    """In training, which tokens are still kept.

    mask: (B, n, 1), 1 or 0 with a straight-through gradient. kept: the masks of every stage so far.
    """

    mask: Tensor
    kept: tuple[Tensor, ...]


class Predictor(nn.Module):
    """Log-probabilities of keeping and dropping tokens (section 3.2): (B, n, D) -> (B, n, 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
        )

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        features = self.local(patches)
        own, shared = features.chunk(2, dim=-1)  # of each token, and averaged over the kept ones
        kept = mask.sum(dim=1, keepdim=True).clamp(min=1)  # chance may drop every token
        average = (shared * mask).sum(dim=1, keepdim=True) / kept
        both = torch.cat([own, average.to(own.dtype).expand_as(own)], dim=-1)
        return self.decide(both).log_softmax(dim=-1)


@reducer("dynamic_vit")
class DynamicViT(Reducer):
    """Before a reducing block, a predictor scores the tokens and only the best go on.

    In training no token leaves: a mask drawn with Gumbel-softmax hides the dropped ones from the
    others' attention, so that gradients reach the predictors (section 3.3), and `loss` draws the
    share of kept tokens to its target. In inference the highest scores are kept. The number kept
    after the s-th reduction is keep_rate^s of the sequence's first length, rounded down.

    Args:
        keep_rate: in (0, 1].
        blocks: the reducing blocks, from 1; None is 4, 7, 10 of 12.
        ratio_weight: of the loss on the share of kept tokens (section 3.3).
        token_weight: of the mean squared distance of the kept tokens from a teacher's, if there is
            a teacher.
    """

    learned = True
    drops = True

    def __init__(
        self,
        shape: Shape,
        *,
        keep_rate: float = 0.7,
        blocks: Sequence[int] | None = None,
        ratio_weight: float = 2.0,
        token_weight: float = 0.5,
    ) -> None:
        super().__init__()
        check_range("reducer.keep_rate", keep_rate, 0, 1, above=True)
        check_range("reducer.ratio_weight", ratio_weight, 0)
        self.keep_rate = keep_rate
        self.blocks = check_blocks(blocks, shape.depth)
        check_range("reducer.token_weight", token_weight, 0)
        self.ratio_weight = ratio_weight
        self.token_weight = token_weight
        self.predictors = nn.ModuleList(Predictor(shape.embed_dim) for _ in self.blocks)

    def start(self, carried: Carried) -> Carried:
        if not self.training:
            return carried
        everything = torch.ones_like(carried.owner, dtype=torch.float32)[:, :, None]
        return carried._replace(memory=Decisions(everything, ()))

    def enter(self, index: int, tokens: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        if index not in self.blocks or self.keep_rate == 1:
            return tokens, carried
        predictor = self.predictors[self.blocks.index(index)]
        prefix, patches = tokens[:, : carried.prefix], tokens[:, carried.prefix :]
        if self.training:
            mask, kept = carried.memory
            drawn = F.gumbel_softmax(predictor(patches, mask).float(), hard=True)[:, :, :1]
            mask = drawn * mask
            return tokens, carried._replace(memory=Decisions(mask, (*kept, mask)))
        score = predictor(
            patches, patches.new_ones(1, 1, 1).expand(patches.shape[0], carried.length, 1)
        )
        keep = self._kept(index, carried.start)
        kept, _ = split(score[:, :, 0], keep)
        return torch.cat([prefix, take(patches, kept)], dim=1), self._without(carried, kept)

    @staticmethod
    def _without(carried: Carried, kept: Tensor) -> Carried:
        """Dropped tokens have no successor; their owner is the last kept token, for want of one."""
        count = kept.shape[1]
        to = torch.full((kept.shape[0], carried.length), count - 1, device=kept.device)
        to = to.scatter(1, kept, torch.arange(count, device=kept.device).expand_as(kept))
        return carried.moved(to, count)

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, carried: Carried
    ) -> tuple[Tensor, Any]:
        if carried.memory is None or not carried.memory.kept:
            return super().attention(index, attn, q, k, v, bias, carried)
        return masked_attention(
            attn, q, k, v, F.pad(carried.memory.mask[..., 0], (carried.prefix, 0), value=1.0)
        ), None

    def loss(
        self, carried: Carried, tokens: Tensor | None, teacher: Tensor | None
    ) -> Tensor | None:
        if carried.memory is None or not carried.memory.kept:
            return None
        errors = [
            (mask.mean(dim=(1, 2)) - self.keep_rate**stage).square().mean()
            for stage, mask in enumerate(carried.memory.kept, start=1)
        ]
        loss = self.ratio_weight * torch.stack(errors).mean()
        if tokens is not None and teacher is not None:
            mask = carried.memory.mask.detach()
            error = (tokens - teacher).square().mean(dim=2, keepdim=True)
            kept = len(mask) * mean_over_images(mask.sum(dim=(1, 2)))  # not this process's alone
            loss = loss + self.token_weight * (error * mask).sum() / kept.clamp(min=1)
        return loss

    def _kept(self, index: int, start: int) -> int:
        """Tokens left before block `index` works."""
        stages = sum(block <= index for block in self.blocks)
        return max(int(round(self.keep_rate**stages * start, 9)), 1)

    def lengths(self, index: int, count: int, start: int) -> tuple[int, int]:
        if index not in self.blocks:
            return count, count
        return (self._kept(index, start),) * 2

    def extra_macs(self, index: int, count: int, start: int, prefix: int) -> int:
        """The predictor on every token that is still there, with 5 per element for its norm."""
        if index not in self.blocks or self.keep_rate == 1:
            return 0
        predictor: Any = self.predictors[0]
        weights = sum(m.weight.numel() for m in predictor.modules() if isinstance(m, nn.Linear))
        return count * (weights + 5 * predictor.local[0].weight.numel())


def masked_attention(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in which a token hidden by the mask is seen by itself alone (section 3.3).

    Args:
        mask: (B, N), 1 or 0 with a gradient.

    Returns:
        (B, H, N, d)
    """
    N = q.shape[2]
    logits = (q * attn.scale @ k.transpose(-2, -1)).float()  # (B, H, N, N)
    seen = mask[:, None, None, :]
    seen = seen + (1 - seen) * torch.eye(N, device=q.device)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp() * seen
    weights = (weights + EPS / N) / (weights.sum(dim=-1, keepdim=True) + EPS)
    return F.dropout(weights, attn.attn_drop.p, attn.training).to(v.dtype) @ v

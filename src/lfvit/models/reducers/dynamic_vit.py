"""DynamicViT (Rao et al., NeurIPS 2021): small predictors learn which tokens to drop."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from lfvit.models.reducer_settings import DynamicViTSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens, split_topk
from lfvit.utils.distributed import mean_over_images

EPS = 1e-6  # keeps rows of masked attention from dividing by zero


class Decisions(NamedTuple):
    """In training, which tokens are kept so far.

    mask: (B, n, 1), 1 or 0 with a straight-through gradient. stages: the masks after every stage.
    """

    mask: Tensor
    stages: tuple[Tensor, ...]


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
        self.apply(init_weights_vit_timm)  # as released: normal of 0.02, without bias

    def forward(self, patches: Tensor, mask: Tensor) -> Tensor:
        local, shared = self.local(patches).chunk(2, dim=-1)  # (B, n, D/2) each
        count = mask.sum(dim=1, keepdim=True).clamp(min=1)  # every token may be dropped by chance
        average = (shared * mask).sum(dim=1, keepdim=True) / count  # over the kept tokens
        features = torch.cat([local, average.to(local.dtype).expand_as(local)], dim=-1)
        return self.decide(features).log_softmax(dim=-1)


@reducer("dynamic_vit")
class DynamicViT(Reducer):
    """Before a reducing block, a predictor scores the tokens and only the best go on.

    In training no token leaves: a mask drawn with Gumbel-softmax hides the dropped ones from the
    others' attention, so that gradients reach the predictors (section 3.3), and `loss` draws the
    share of kept tokens to its target. In inference the highest scores are kept. The number kept
    after the s-th reduction is keep_rate^s of the n patch tokens at the start, rounded down.
    """

    settings_type = DynamicViTSettings
    learned = True
    drops = True

    def __init__(self, settings: DynamicViTSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        self.predictors = nn.ModuleList(Predictor(vit.embed_dim) for _ in self.blocks)

    def start(self, state: TokenState) -> TokenState:
        if not self.training:
            return state
        everything = torch.ones_like(state.source, dtype=torch.float32)[:, :, None]
        return state._replace(memory=Decisions(everything, ()))

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        if self.settings.keep_rate == 1:
            return tokens, state
        predictor = self.predictors[self.blocks.index(index)]
        prefix, patches = tokens.tensor_split([state.num_prefix_tokens], dim=1)
        if self.training:
            mask, stages = state.memory
            drawn = F.gumbel_softmax(predictor(patches, mask).float(), hard=True)[:, :, :1]
            mask = drawn * mask
            return tokens, state._replace(memory=Decisions(mask, (*stages, mask)))
        everything = patches.new_ones(1, 1, 1).expand(patches.shape[0], state.num_tokens, 1)
        score = predictor(patches, everything)[:, :, 0]  # (B, n)
        k = self.num_left(index, state.num_patches)
        kept, _ = split_topk(score, k)
        tokens = torch.cat([prefix, gather_tokens(patches, kept)], dim=1)
        return tokens, state.keep(kept, k)  # no token stands for the dropped ones

    def attention(
        self, index: int, attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, state: TokenState
    ) -> tuple[Tensor, Any]:
        if state.memory is None or not state.memory.stages:
            return super().attention(index, attn, q, k, v, bias, state)
        mask = F.pad(state.memory.mask[..., 0], (state.num_prefix_tokens, 0), value=1.0)
        return masked_attention(attn, q, k, v, mask), None

    def loss(
        self, state: TokenState, tokens: Tensor | None, teacher: Tensor | None
    ) -> Tensor | None:
        if state.memory is None or not state.memory.stages:
            return None
        errors = [
            (mask.mean(dim=(1, 2)) - self.settings.keep_rate**stage).square().mean()
            for stage, mask in enumerate(state.memory.stages, start=1)
        ]
        loss = self.settings.ratio_weight * torch.stack(errors).mean()
        if tokens is not None and teacher is not None:
            mask = state.memory.mask.detach()
            error = (tokens - teacher).square().mean(dim=2, keepdim=True)
            kept = len(mask) * mean_over_images(mask.sum(dim=(1, 2)))  # of all processes
            loss = loss + self.settings.token_weight * (error * mask).sum() / kept.clamp(min=1)
        return loss


def masked_attention(attn: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in which a token hidden by the mask is seen by itself alone (section 3.3).

    Args:
        mask: (B, N), 1 or 0 with a gradient.

    Returns:
        (B, H, N, d)
    """
    N = q.shape[2]
    logits = (q * attn.scale @ k.transpose(-2, -1)).float()  # (B, H, N, N)
    visible = mask[:, None, None, :]
    visible = visible + (1 - visible) * torch.eye(N, device=q.device)  # (B, 1, N, N)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp() * visible
    weights = (weights + EPS / N) / (weights.sum(dim=-1, keepdim=True) + EPS)
    return F.dropout(weights, attn.attn_drop.p, attn.training).to(v.dtype) @ v

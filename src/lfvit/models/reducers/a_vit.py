"""A-ViT (Yin et al., CVPR 2022): every token halts when its scores add up to one."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lfvit.errors import ConfigError
from lfvit.models.blocks import padding_bias
from lfvit.models.reducer_settings import AViTSettings
from lfvit.models.reducers import Reduced, Reducer, TokenState, reducer
from lfvit.models.tokens import gather_tokens

EPS = 0.01  # a token halts at 1 - EPS


class Halting(NamedTuple):
    """Of all N tokens at the start, prefix included.

    output: (B, N, D), sum of their outputs so far, weighted by their scores. total: (B, N), sum of
    the scores. ponder: (B, N), blocks they were in, and the remainder. places: (B, M), which tokens
    the sequence holds. scores: of each block, mean over the tokens.
    """

    output: Tensor
    total: Tensor
    ponder: Tensor
    places: Tensor
    scores: tuple[Tensor, ...] = ()

    def running(self) -> Tensor:
        """(B, N) bool, tokens that have not halted."""
        return self.total < 1 - EPS


@reducer("a_vit")
class AViT(Reducer):
    """After each block, a token's first channel says how far it has come; at one it halts.

    The score is sigmoid(gate_scale * x - gate_center), and all that remains in the last block. A
    token that has halted is seen by no other, class token included, and its output is the mean of
    its outputs in the blocks before, weighted by the scores, with what remains on the last.
    Training adds the blocks that tokens are in and the distance of the scores from a normal
    distribution over the blocks to the loss. In a ViT trained without A-ViT the channel means
    nothing: it must be fine-tuned.
    """

    settings_type = AViTSettings
    learned = True
    adaptive = True

    def __init__(self, settings: AViTSettings, vit: Any) -> None:
        super().__init__(settings, vit)
        depth = len(vit.blocks)
        target_depth = settings.target_depth or max(depth * 2 // 3, 1)
        if target_depth > depth:
            raise ConfigError(
                f"reducer.target_depth={target_depth}: the backbone has {depth} blocks; valid: 1 "
                f"to {depth}"
            )
        distances = torch.arange(depth, device="cpu") - target_depth  # also of a model on "meta"
        prior = (-distances.square() / 2).exp()
        self.prior = (0.98 * prior / prior[:target_depth].sum()).tolist()  # as released

    def before_block(self, index: int, tokens: Tensor, metric: Any, state: TokenState) -> Reduced:
        """Take the outputs of the block before, and drop tokens that have halted in every image."""
        p, (B, N, _) = state.num_prefix_tokens, tokens.shape
        if index == 0:
            zeros = tokens.new_zeros(B, N, dtype=torch.promote_types(tokens.dtype, torch.float32))
            places = torch.arange(N, device=tokens.device).expand(B, -1)
            memory = Halting(torch.zeros_like(tokens), zeros, zeros, places)
            return tokens, state._replace(memory=memory)
        halting = self.halt(tokens, state.memory, last=False)
        running = halting.running().gather(1, halting.places)[:, p:]  # (B, M - p)
        most = self.longest(running.sum(dim=1), running.shape[1])
        kept = running.long().argsort(dim=1, descending=True, stable=True)[:, :most]
        prefix, patches = tokens.tensor_split([p], dim=1)
        places = torch.cat([halting.places[:, :p], halting.places[:, p:].gather(1, kept)], dim=1)
        tokens = torch.cat([prefix, gather_tokens(patches, kept)], dim=1)
        return tokens, state.keep(kept, most)._replace(memory=halting._replace(places=places))

    def halt(self, tokens: Tensor, halting: Halting, last: bool) -> Halting:
        """Add the outputs (B, M, D) of a block, the last or not."""
        output, total, ponder, places, scores = halting
        before = total.gather(1, places)  # (B, M)
        running = (before < 1 - EPS).to(total.dtype)
        gate = (
            tokens[:, :, 0].to(total.dtype) * self.settings.gate_scale - self.settings.gate_center
        )
        score = gate.sigmoid() * running if not last else running
        halts = running * (before + score > 1 - EPS)
        weight = score * (1 - halts) + (1 - before) * halts  # what remains, in its last block
        weighted = (tokens * weight[:, :, None]).to(output.dtype)
        return Halting(
            output.scatter_add(1, places[:, :, None].expand_as(weighted), weighted),
            total.scatter_add(1, places, score),
            ponder.scatter_add(1, places, running + (1 - before) * halts),
            places,
            (*scores, score.sum(dim=1).mean() / total.shape[1]),
        )

    def attention_bias(self, state: TokenState) -> Tensor | None:
        running = state.memory.running().gather(1, state.memory.places)
        return padding_bias(running, 0)

    def finish(self, tokens: Tensor, state: TokenState) -> Reduced:
        halting = self.halt(tokens, state.memory, last=True)
        source = torch.arange(state.num_patches, device=tokens.device).expand_as(state.source)
        state = state._replace(source=source, num_tokens=state.num_patches, memory=halting)
        return halting.output, state

    def loss(
        self, state: TokenState, tokens: Tensor | None, teacher: Tensor | None
    ) -> Tensor | None:
        scores = torch.stack(state.memory.scores)
        scores = (scores / scores.sum()).clamp(0.01, 0.99)
        divergence = F.kl_div(scores.log(), scores.new_tensor(self.prior), reduction="batchmean")
        ponder = state.memory.ponder.mean()
        return self.settings.ponder_weight * ponder + self.settings.prior_weight * divergence

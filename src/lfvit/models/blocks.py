"""The loop over blocks: of one-pass and two-pass models, with and without a reducer."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lfvit.models.attention import class_attention, project_out, project_qkv
from lfvit.models.reducers.base import Layout, Reducer, TokenState

NO_REDUCTION = Reducer()


class BlocksOutput(NamedTuple):
    """What comes out of the blocks.

    tokens: (B, N, D) before the final norm.
    class_attention: one (B, n) per counted block, n the patch tokens at the start.
    state: of the reducer; None without one.
    """

    tokens: Tensor
    class_attention: list[Tensor]
    state: TokenState | None

    def unmerge(self, tokens: Tensor) -> Tensor:
        """A token for every patch of the start: (B, N, D) -> (B, num_prefix_tokens + n, D)."""
        return tokens if self.state is None else self.state.unmerge(tokens)

    def without_registers(self, num_prefix_tokens: int) -> "BlocksOutput":
        """The class token alone of the prefix tokens."""
        tokens = torch.cat([self.tokens[:, :1], self.tokens[:, num_prefix_tokens:]], dim=1)
        state = self.state
        if state is not None:
            state = state._replace(layout=state.layout._replace(num_prefix_tokens=1))
        return BlocksOutput(tokens, self.class_attention, state)


def run_blocks(
    blocks: Iterable[Any],
    tokens: Tensor,
    *,
    num_prefix_tokens: int = 1,
    reducer: Reducer | None = None,
    layout: Layout | None = None,
    class_attention_from: int | None = None,
) -> BlocksOutput:
    """timm's pre-norm blocks on tokens (B, N, D).

    Args:
        blocks: timm `Block`s.
        tokens: prefix tokens first, the class token before all others.
        num_prefix_tokens: as in `layout`, if it is given.
        reducer: shortens the sequence; needs `layout`.
        class_attention_from: collect the class attention of the blocks from this index on; None
            collects none. Selectors choose by it: it has no gradient.
    """
    rows: list[Tensor] = []
    state: Any = None
    if reducer is not None:
        if layout is None:
            raise ValueError("a reducer needs the layout of the sequence")
        n = int(layout.centers.shape[1])  # a plain number, also while tracing
        source = torch.arange(n, device=tokens.device).expand(tokens.shape[0], -1)
        state = reducer.start(TokenState(source, n, layout))
    hooks = NO_REDUCTION if reducer is None else reducer
    for index, block in enumerate(blocks):
        tokens, state = hooks.before_block(index, tokens, state)
        q, k, v = project_qkv(block.attn, block.norm1(tokens))  # (B, H, N, d) each
        bias = hooks.attention_bias(state)
        if class_attention_from is not None and index >= class_attention_from:
            with torch.no_grad():
                row = class_attention(block.attn, q, k, bias)[:, num_prefix_tokens - 1 :]
                rows.append(row if state is None else state.spread(row))  # (B, n)
        x, metric = hooks.attention(index, block.attn, q, k, v, bias, state)  # (B, H, N, d)
        tokens = tokens + block.drop_path1(block.ls1(project_out(block.attn, x)))
        tokens, state = hooks.reduce_tokens(index, tokens, metric, state)
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return BlocksOutput(tokens, rows, state)

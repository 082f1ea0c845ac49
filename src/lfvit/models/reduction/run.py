"""The one loop over blocks: for one-pass and two-pass models, with and without a reducer."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lfvit.models.attention import class_attention, heads, merge_heads
from lfvit.models.reduction.registry import Carried, Layout, Reducer

NO_REDUCTION = Reducer()


class Run(NamedTuple):
    """What comes out of the blocks.

    tokens: (B, N, D) before the final norm. rows: one (B, n) class attention per counted block, n
    the patch tokens at the start. carried: which token stands for which; None without a reducer.
    """

    tokens: Tensor
    rows: list[Tensor]
    carried: Carried | None

    def without_registers(self, prefix: int) -> "Run":
        """The same with the class token as the only one of `prefix` tokens."""
        tokens = torch.cat([self.tokens[:, :1], self.tokens[:, prefix:]], dim=1)
        carried = self.carried
        if carried is not None:
            carried = carried._replace(layout=carried.layout._replace(prefix=1))
        return Run(tokens, self.rows, carried)

    def expand(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) of this run at the length the sequence had at the start."""
        return tokens if self.carried is None else self.carried.expand(tokens)


def run_blocks(
    blocks: Iterable[Any],
    tokens: Tensor,
    *,
    prefix: int = 1,
    reducer: Reducer | None = None,
    layout: Layout | None = None,
    class_rows_from: int | None = None,
) -> Run:
    """timm's pre-norm blocks on tokens (B, N, D).

    Args:
        blocks: timm `Block`s.
        tokens: prefix tokens first, the class token before all others.
        prefix: how many there are; those of `layout`, if it is given.
        reducer: shortens the sequence; needs `layout`.
        class_rows_from: collect the class attention of the blocks from this index (0-based) on;
            None collects none. It is what selectors choose by: no gradient passes through it.
    """
    rows: list[Tensor] = []
    carried: Any = None
    if reducer is not None:
        if layout is None:
            raise ValueError("a reducer needs the layout of the sequence")
        count = int(layout.places.shape[1])  # a plain number, also while tracing
        owner = torch.arange(count, device=tokens.device).expand(tokens.shape[0], -1)
        carried = reducer.start(Carried(owner, count, layout))
    method = NO_REDUCTION if reducer is None else reducer
    for index, block in enumerate(blocks):
        tokens, carried = method.enter(index, tokens, carried)
        q, k, v = heads(block.attn, block.norm1(tokens))
        bias = method.key_bias(carried)
        if class_rows_from is not None and index >= class_rows_from:
            with torch.no_grad():
                row = class_attention(block.attn, q, k, bias)[:, prefix - 1 :]
                rows.append(row if carried is None else carried.spread(row))
        mixed, seen = method.attention(index, block.attn, q, k, v, bias, carried)
        tokens = tokens + block.drop_path1(block.ls1(merge_heads(block.attn, mixed)))
        tokens, carried = method.shorten(index, tokens, seen, carried)
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return Run(tokens, rows, carried)

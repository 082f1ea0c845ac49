"""How smooth the tokens of a model become from block to block, over a set of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.measure.spectrum import (
    high_frequency_energy,
    high_frequency_set,
    received_attention,
    relative_log_amplitude,
    similarity_to_dc,
)
from lfvit.models.blocks import class_attention
from lfvit.models.passes import forward_passes, num_passes

PARTS = ("norm1", "attn", "norm2", "drop_path2")


class BlockTrace(NamedTuple):
    """The tokens of one pass through L blocks, and the attention they receive.

    tokens: L + 1 times (B, N, D), as they enter block 1 and as they leave each block.
    received: L times (B, N), from all tokens, see `received_attention`.
    of_class: L times (B, N - 1), from the first token, see `class_attention`.
    """

    tokens: list[Tensor]
    received: list[Tensor]
    of_class: list[Tensor]


@contextmanager
def trace_blocks(blocks: Sequence[Any]) -> Iterator[list[BlockTrace]]:
    """Record the tokens of every pass through timm's pre-norm blocks inside the ``with``.

    Hooks are on the parts of a block: it starts with ``norm1`` of its input, and ends by adding
    ``drop_path2`` of the MLP to the input of ``norm2``.

    Raises:
        ConfigError: blocks of another kind.
    """
    for block in blocks:
        if not all(hasattr(block, part) for part in PARTS):
            raise ConfigError(f"blocks of type {type(block).__name__} cannot be traced")
    traces: list[BlockTrace] = []
    residual: list[Tensor] = []  # the input of norm2 of the current block

    def start(index: int, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if index == 0:
            traces.append(BlockTrace([inputs[0]], [], []))

    def attend(attn: Any, _: nn.Module, __: Any, qkv: Tensor) -> None:
        q, k, _v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        traces[-1].received.append(received_attention(q, k, attn.scale))
        traces[-1].of_class.append(class_attention(attn, q, k))

    def middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
        residual[:] = inputs

    def end(_: nn.Module, __: Any, update: Tensor) -> None:
        traces[-1].tokens.append(residual[0] + update)

    handles = []
    try:
        for index, block in enumerate(blocks):
            handles += [
                block.norm1.register_forward_pre_hook(partial(start, index)),
                block.attn.qkv.register_forward_hook(partial(attend, block.attn)),
                block.norm2.register_forward_pre_hook(middle),
                block.drop_path2.register_forward_hook(end),
            ]
        yield traces
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def diagnose_batch(model: nn.Module, images: Tensor, removed: float) -> list[dict[str, Tensor]]:
    """`measure_blocks` of every pass of a model.

    The second of two passes is measured with selector "none", the whole image at full resolution:
    the only second pass whose tokens are a full grid.

    Args:
        model: in evaluation mode.
        images: (B, 3, S, S), normalised.
        removed: share of low-frequency tokens, see `high_frequency_set`.

    Raises:
        ConfigError: blocks that cannot be traced, or tokens that get fewer.
    """
    backbone: Any = getattr(model, "backbone", model)
    options: dict[str, Any] = {"selector": "none"} if num_passes(model) > 1 else {}
    with trace_blocks(backbone.blocks) as traces:
        forward_passes(model, images, **options)
    for trace in traces:
        counts = [tokens.shape[1] for tokens in trace.tokens]
        for block, (before, after) in enumerate(pairwise(counts), 1):
            if before != after:
                raise ConfigError(
                    f"the number of tokens changes from {before} to {after} at block {block}; the "
                    "diagnosis needs the full grid at every block: pass reducer=none"
                )
    return [measure_blocks(trace, removed, backbone.num_prefix_tokens) for trace in traces]


def measure_blocks(trace: BlockTrace, removed: float, num_prefix_tokens: int) -> dict[str, Tensor]:
    """The quantities of the paper's figures, for every image and block.

    The sets of a block are chosen by the attention its tokens receive, and measured in its output.

    Args:
        trace: L blocks on B images.
        removed: share of low-frequency tokens.
        num_prefix_tokens: tokens before the patches, such as the class token.

    Returns:
        (B, L + 1) float32 on the CPU by name, first the tokens that enter block 1; NaN where there
        is no attention yet.
        log_amplitude: `relative_log_amplitude` (Figure 1).
        hf_dc_similarity, lf_dc_similarity: mean `similarity_to_dc` of the set (Figure 2).
        hf_amplitude, lf_amplitude: root mean `high_frequency_energy` of the set (Figure 2).
        last_similarity: mean cosine similarity of each token to itself after the last block
            (Figure 4). dc_similarity: mean `similarity_to_dc` of all tokens (Figure 4).
    """
    last = trace.tokens[-1][:, num_prefix_tokens:].float()
    columns: list[dict[str, Tensor]] = []
    for tokens, received in zip(trace.tokens, [None, *trace.received], strict=True):
        patches = tokens[:, num_prefix_tokens:].float()  # (B, g*g, D)
        to_dc, energy = similarity_to_dc(patches), high_frequency_energy(patches)
        column = {
            "log_amplitude": relative_log_amplitude(patches),
            "last_similarity": F.cosine_similarity(patches, last, dim=2).mean(dim=1),
            "dc_similarity": to_dc.mean(dim=1),
        }
        high = low = torch.full_like(to_dc, torch.nan)  # (B, g*g), weights of the tokens
        if received is not None:
            high = high_frequency_set(received[:, num_prefix_tokens:], removed).float()
            low = 1 - high
        for name, weights in (("hf", high), ("lf", low)):
            weights = weights / weights.sum(dim=1, keepdim=True)
            column[f"{name}_dc_similarity"] = (to_dc * weights).sum(dim=1)
            column[f"{name}_amplitude"] = (energy * weights).sum(dim=1).sqrt()
        columns.append(column)
    return {name: torch.stack([c[name] for c in columns], dim=1).cpu() for name in columns[0]}


def summarize(batches: Sequence[Sequence[dict[str, Tensor]]]) -> list[dict[str, Any]]:
    """Mean and spread over images, from `diagnose_batch` of every batch.

    Returns:
        One row per pass and block: pass (from 1), block (0 is what enters block 1) and, for every
        measure, its mean and ``_std``, the standard deviation over images; None where undefined.
    """
    rows = []
    for number, parts in enumerate(zip(*batches, strict=True), 1):
        columns: dict[str, list[float]] = {}
        for name in parts[0]:
            values = torch.cat([part[name] for part in parts]).double()  # (N, L + 1)
            columns[name] = values.mean(dim=0).tolist()
            columns[f"{name}_std"] = values.std(dim=0, correction=0).tolist()
        for block, row in enumerate(zip(*columns.values(), strict=True)):
            measures = dict(zip(columns, (None if v != v else v for v in row), strict=True))
            rows.append({"pass": number, "block": block, **measures})
    return rows

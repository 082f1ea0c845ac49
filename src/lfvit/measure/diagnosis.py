"""How smooth the tokens of a model become from block to block, over a set of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.measure.spectrum import (
    high_frequency_energy,
    high_frequency_set,
    masked_mean,
    received_attention,
    relative_log_amplitude,
    similarity_to_dc,
)
from lfvit.models.passes import forward_passes, num_passes

VALID = "valid: timm's pre-norm blocks, such as those of deit_small_patch16_224"


@dataclass
class BlockTrace:
    """The tokens of one pass through L blocks, and the attention they receive.

    tokens: L + 1 times (B, N, D), as they enter block 1 and as they leave each block.
    received: L times (B, N), see `received_attention`.
    """

    tokens: list[Tensor] = field(default_factory=list)
    received: list[Tensor] = field(default_factory=list)


@contextmanager
def trace_blocks(blocks: Sequence[Any]) -> Iterator[list[BlockTrace]]:
    """Record the tokens of every pass through `blocks` inside the ``with``.

    Hooks are on the parts of a block, which two-pass models call one by one: a block starts with
    ``norm1`` of its input, and ends by adding ``drop_path2`` of the MLP to the input of ``norm2``.

    Raises:
        ConfigError: blocks of another kind, or tokens that change or are dropped between blocks.
    """
    for block in blocks:
        if not all(hasattr(block, part) for part in ("norm1", "attn", "norm2", "drop_path2")):
            raise ConfigError(f"blocks of type {type(block).__name__} cannot be traced; {VALID}")
    traces: list[BlockTrace] = []
    residual: list[Tensor] = []  # the input of norm2 of the current block

    def start(index: int, _: nn.Module, inputs: tuple[Tensor]) -> None:
        if index == 0:
            traces.append(BlockTrace([inputs[0]]))
        _check_unchanged(traces[-1].tokens[-1], inputs[0], len(traces[-1].tokens))

    def attend(attn: Any, _: nn.Module, __: Any, qkv: Tensor) -> None:
        q, k, _v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        received = received_attention(attn.q_norm(q), attn.k_norm(k), attn.scale)
        traces[-1].received.append(received)

    def middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
        residual[:] = inputs

    def end(_: nn.Module, __: Any, update: Tensor) -> None:
        tokens = traces[-1].tokens
        _check_count(tokens[-1], residual[0], len(tokens))
        tokens.append(residual[0] + update)

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
        for trace in traces:
            if not len(trace.received) == len(trace.tokens) - 1 == len(blocks):
                raise ConfigError(f"the blocks of this model do not call their parts; {VALID}")
    finally:
        for handle in handles:
            handle.remove()


def _check_count(before: Tensor, after: Tensor, block: int) -> None:
    if before.shape[1] != after.shape[1]:
        raise ConfigError(
            f"the number of tokens changes from {before.shape[1]} to {after.shape[1]} at block "
            f"{block}; the diagnosis needs the full grid at every block, so take a model, or its "
            "settings, without token reduction"
        )


def _check_unchanged(left: Tensor, entered: Tensor, block: int) -> None:
    _check_count(left, entered, block)
    if left is not entered and not torch.allclose(
        left.float(), entered.float(), rtol=1e-3, atol=1e-4
    ):
        raise ConfigError(
            f"the tokens entering block {block} are not those that left the one before; {VALID}"
        )


@torch.no_grad()
def diagnose_batch(model: nn.Module, images: Tensor, removed: float) -> list[dict[str, Tensor]]:
    """`measure_blocks` of every pass of a model.

    The second of two passes is measured with selector "none", the whole image at full resolution:
    the only second pass whose tokens are a full grid.

    Args:
        model: in evaluation mode.
        images: (B, 3, S, S), normalised.
        removed: share of low-frequency tokens, see `high_frequency_set`.
    """
    backbone: Any = getattr(model, "backbone", model)
    options: dict[str, Any] = {"selector": "none"} if num_passes(model) > 1 else {}
    with trace_blocks(backbone.blocks) as traces:
        forward_passes(model, images, **options)
    prefix = (
        backbone.num_prefix_tokens if hasattr(backbone, "num_prefix_tokens") else backbone.prefix
    )
    return [measure_blocks(trace, removed, prefix) for trace in traces]


def measure_blocks(trace: BlockTrace, removed: float, num_prefix_tokens: int) -> dict[str, Tensor]:
    """The quantities of the paper's figures, for every image and block.

    The sets of a block are chosen by the attention its tokens receive in that block, and measured
    in its output, where a reducing block would split them.

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
        if received is None:
            high = low = torch.full_like(to_dc, torch.nan)
        else:
            high = high_frequency_set(received[:, num_prefix_tokens:], removed)
            low = ~high
        for name, chosen in (("hf", high), ("lf", low)):
            column[f"{name}_dc_similarity"] = masked_mean(to_dc, chosen)
            column[f"{name}_amplitude"] = masked_mean(energy, chosen).sqrt()
        columns.append(column)
    return {name: torch.stack([c[name] for c in columns], dim=1).cpu() for name in columns[0]}


def summarize(batches: Sequence[Sequence[dict[str, Tensor]]]) -> list[dict[str, Any]]:
    """Mean and spread over images.

    Args:
        batches: what `diagnose_batch` returned for each.

    Returns:
        One row per pass and block: pass (from 1), block (0 is what enters block 1) and, for every
        measure, its mean and ``_std``, the standard deviation over images; None where undefined.
    """
    rows = []
    for number, measures in enumerate(zip(*batches, strict=True), 1):
        joined = {
            key: torch.cat([batch[key] for batch in measures]).double() for key in measures[0]
        }
        for block in range(next(iter(joined.values())).shape[1]):
            row: dict[str, Any] = {"pass": number, "block": block}
            for key, values in joined.items():
                column = values[:, block]
                defined = not column.isnan().any()
                row[key] = column.mean().item() if defined else None
                row[f"{key}_std"] = column.std(correction=0).item() if defined else None
            rows.append(row)
    return rows

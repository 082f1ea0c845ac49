"""What happens to the tokens of a trained model from block to block, over a set of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfvit.data import Batch
from lfvit.errors import ConfigError, DataError
from lfvit.measure.spectrum import (
    high_frequency_energy,
    high_frequency_set,
    mean_over,
    received_attention,
    relative_log_amplitude,
    similarity_to_dc,
)
from lfvit.models.selection import Scores
from lfvit.models.two_pass import TwoPassViT

Measures = dict[str, Tensor]

KNOWN = "valid: timm's pre-norm blocks, such as those of deit_small_patch16_224"
ONE_PASS, FIRST, SECOND = "one pass", "first pass", "second pass, whole image fine"


class BlockTrace:
    """The tokens around every block of one forward, and the attention they received inside.

    tokens: as they enter block 1, then as they leave each block, (B, N, D) each.
    received: one (B, N) per block, see `received_attention`.
    """

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.received: list[Tensor] = []


@contextmanager
def trace_blocks(blocks: Sequence[Any]) -> Iterator[BlockTrace]:
    """Record the forward inside the ``with``, of timm's pre-norm blocks.

    Listens to the parts of a block, which the two-pass models call by themselves: a block starts
    with ``norm1`` of its input, and ends by adding ``drop_path2`` of the MLP to the input of
    ``norm2``.

    Raises:
        ConfigError: blocks of another make, or, in the forward, blocks between which the tokens
            change or get fewer.
    """
    for block in blocks:
        if not all(hasattr(block, part) for part in ("norm1", "attn", "norm2", "drop_path2")):
            raise ConfigError(f"blocks of type {type(block).__name__} cannot be traced; {KNOWN}")
    trace = BlockTrace()
    residual: list[Tensor] = []  # of the block that is running

    def enter(_: nn.Module, inputs: tuple[Tensor]) -> None:
        if not trace.tokens:
            trace.tokens.append(inputs[0])
        _check_unchanged(trace.tokens[-1], inputs[0], len(trace.tokens))

    def middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
        residual[:] = inputs

    def leave(_: nn.Module, __: Any, update: Tensor) -> None:
        _check_count(trace.tokens[-1], residual[0], len(trace.tokens))
        trace.tokens.append(residual[0] + update)

    def attend_with(attn: Any) -> Any:
        def attend(_: nn.Module, __: Any, qkv: Tensor) -> None:
            q, k, _v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            trace.received.append(received_attention(attn.q_norm(q), attn.k_norm(k), attn.scale))

        return attend

    handles = []
    try:
        for block in blocks:
            handles += [
                block.norm1.register_forward_pre_hook(enter),
                block.attn.qkv.register_forward_hook(attend_with(block.attn)),
                block.norm2.register_forward_pre_hook(middle),
                block.drop_path2.register_forward_hook(leave),
            ]
        yield trace
        if not len(trace.received) == len(trace.tokens) - 1 == len(blocks):
            raise ConfigError(f"the blocks of this model do not call their parts; {KNOWN}")
    finally:
        for handle in handles:
            handle.remove()


def _check_count(before: Tensor, after: Tensor, block: int) -> None:
    if before.shape[1] != after.shape[1]:
        raise ConfigError(
            f"the number of tokens changes from {before.shape[1]} to {after.shape[1]} at block "
            f"{block}; the diagnostic needs the full grid at every block, so take a model, or its "
            "settings, without token reduction"
        )


def _check_unchanged(left: Tensor, entered: Tensor, block: int) -> None:
    _check_count(left, entered, block)
    if left is not entered and not torch.allclose(
        left.float(), entered.float(), rtol=1e-3, atol=1e-4
    ):
        raise ConfigError(
            f"the tokens entering block {block} are not those that left the one before, as far as "
            f"the diagnostic can see; {KNOWN}"
        )


class Diagnosis(L.LightningModule):
    """Runs a model in ``trainer.predict`` and measures its tokens at every block.

    A two-pass model is measured in its first pass, on the coarse grid, and in a second pass with
    selector "none": the whole image fine, the only second pass whose tokens are a full grid.

    Args:
        model: a one-pass ViT of timm or a `TwoPassViT`.
        removed: share of low-frequency tokens, see `high_frequency_set`.
    """

    def __init__(self, model: nn.Module, removed: float) -> None:
        super().__init__()
        self.model: Any = model
        self.removed = removed

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Measures] | None:
        images, coarse_images = batch.images[batch.valid], batch.coarse_images[batch.valid]
        if not len(images):
            return None  # not one image of the batch could be read
        model = self.model
        if not isinstance(model, TwoPassViT):
            with trace_blocks(model.blocks) as only:
                model(images)
            return {ONE_PASS: measure(only, self.removed, model.num_prefix_tokens)}
        blocks: Any = model.backbone.blocks
        prefix = model.backbone.prefix
        with trace_blocks(blocks) as trace:
            first = model.first_pass(images, coarse_images)
        found = {FIRST: measure(trace, self.removed, prefix)}
        whole = model.select(Scores(first.gca, first.last), "none")
        with trace_blocks(blocks) as trace:
            model.second_pass(images, first, whole)
        return {**found, SECOND: measure(trace, self.removed, prefix)}


def measure(trace: BlockTrace, removed: float, prefix: int = 1) -> Measures:
    """Everything the figures show, for every image and block.

    The sets of a block are chosen by the attention its tokens receive in that block, and measured
    in its output, where a reducing block would split them.

    Args:
        trace: L blocks on B images.
        removed: share of low-frequency tokens.
        prefix: tokens before the patches, such as the class token.

    Returns:
        (B, L + 1) float32 on the CPU by name, first the tokens that enter block 1; NaN where there
        is no attention yet.
        log_amplitude: `relative_log_amplitude` (Figure 1).
        hf_dc_similarity, lf_dc_similarity: mean `similarity_to_dc` of the set (Figure 2).
        hf_amplitude, lf_amplitude: root mean `high_frequency_energy` of the set (Figure 2).
        last_similarity: mean cosine similarity of each token to itself after the last block
            (Figure 4). dc_similarity: mean `similarity_to_dc` of all tokens (Figure 4).
    """
    last = trace.tokens[-1][:, prefix:].float()
    none = last.new_full((len(last),), torch.nan)
    rows: dict[str, list[Tensor]] = {}
    for tokens, received in zip(trace.tokens, [None, *trace.received], strict=True):
        patches = tokens[:, prefix:].float()  # (B, g*g, D)
        to_dc, energy = similarity_to_dc(patches), high_frequency_energy(patches)
        values = {
            "log_amplitude": relative_log_amplitude(patches),
            "last_similarity": F.cosine_similarity(patches, last, dim=2).mean(dim=1),
            "dc_similarity": to_dc.mean(dim=1),
        }
        high = None if received is None else high_frequency_set(received[:, prefix:], removed)
        for name in ("hf", "lf"):
            chosen = high if name == "hf" or high is None else ~high
            values |= {
                f"{name}_dc_similarity": none if chosen is None else mean_over(to_dc, chosen),
                f"{name}_amplitude": none if chosen is None else mean_over(energy, chosen).sqrt(),
            }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return {name: torch.stack(values, dim=1).cpu() for name, values in rows.items()}


def summarise(batches: Sequence[dict[str, Measures]]) -> list[dict[str, Any]]:
    """Mean and spread over images, from what `Diagnosis` said about every batch.

    Returns:
        One row per pass and block: pass, block (0 is what enters block 1) and, for every measure,
        its mean and ``_std``, the standard deviation over images; None where not defined.

    Raises:
        DataError: no batches.
    """
    if not batches:
        raise DataError("not one image could be read")
    rows: list[dict[str, Any]] = []
    for name, measures in batches[0].items():
        joined = {key: torch.cat([b[name][key] for b in batches]).double() for key in measures}
        depth = next(iter(joined.values())).shape[1]
        for block in range(depth):
            row: dict[str, Any] = {"pass": name, "block": block}
            for key, values in joined.items():
                column = values[:, block]
                known = not column.isnan().any()
                row[key] = column.mean().item() if known else None
                row[f"{key}_std"] = column.std(correction=0).item() if known else None
            rows.append(row)
    return rows

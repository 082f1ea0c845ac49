"""Timing models side by side on one machine."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lfvit.measure.thresholds import sweep_thresholds
from lfvit.models.attention import class_attention, heads
from lfvit.models.indexing import take
from lfvit.models.selection import Scores, coarse_cell, remaining_cells, score_cells
from lfvit.models.two_pass import TwoPassViT


def time_interleaved(
    cases: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    repeats: int,
    device: torch.device,
    gradients: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every repetition of every case.

    The cases take turns, so that a machine that slows down slows all of them. Each timing starts
    and ends with the device idle.

    Args:
        cases: name -> what is timed.
        warmup: untimed rounds first.
        repeats: timed rounds.
        gradients: whether the cases need them; otherwise everything runs in inference mode.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode(mode=not gradients):
        for round_ in range(warmup + repeats):
            for name, run in cases.items():
                _synchronise(device)
                start = time.perf_counter()
                run()
                _synchronise(device)
                if round_ >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def threshold_for(model: TwoPassViT, images: Tensor, exit_fraction: float) -> float:
    """The threshold at which this share of these images exits, to the nearest whole image.

    Random images have meaningless confidences; this states the share instead of the threshold.
    """
    with torch.inference_mode():
        confidence = model.infer(images, 0.0).confidence.sort(descending=True).values
    exits = round(exit_fraction * len(images))
    if exits == 0:
        return 2.0
    if exits == len(images):
        return 0.0
    return (confidence[exits - 1] + confidence[exits]).item() / 2


def parts(model: TwoPassViT, images: Tensor) -> dict[str, Callable[[], object]]:
    """The steps of two passes over one batch, each to be timed alone.

    "selection" is all that deciding and picking takes: class attention of the counted blocks,
    scores, window, and gathering patches and tokens. "threshold curve" is every threshold for as
    many images, from the logits.

    Args:
        images: (B, 3, S, S).
    """
    backbone = model.backbone
    with torch.inference_mode():
        first = model.first_pass(images)
        scores = Scores(first.gca, first.last)
        selection = model.select(scores)
        attn: Any = backbone.blocks[0].attn
        q, k, _ = heads(attn, first.outputs)
        maps = backbone.stem(images)
        second = model.second_pass(images, first, selection).logits
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    counted = len(backbone.blocks) - model.gca_start

    def choose() -> None:
        rows = [class_attention(attn, q, k) for _ in range(counted)]
        chosen = model.select(score_cells(rows, model.beta, model.grid))
        backbone.pick_patches(maps, chosen.fine_indices)
        take(first.inputs, remaining_cells(chosen.cells, model.grid))
        if model.reuse is not None:
            take(first.outputs, coarse_cell(chosen.fine_indices, model.grid))

    return {
        "both passes": lambda: model(images),
        "first pass": lambda: model.first_pass(images),
        "selection": choose,
        "second pass": lambda: model.second_pass(images, first, selection),
        "threshold curve": lambda: sweep_thresholds(first.logits, second, targets, 1, 1),
    }


def peak_memory(run: Callable[[], object], device: torch.device) -> float | None:
    """Most memory in use during one call, in 1e6 bytes; None on a CPU, which does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e6


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of repeated timings."""
    return {"median": median(values), "fastest": min(values), "slowest": max(values)}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Timing models side by side on one machine."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.measure.thresholds import NO_EXIT
from lfvit.models.passes import early_exit, num_passes

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        gradients: whether the cases need them; otherwise they run in inference mode.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode(not gradients):
        for round_ in range(warmup + repeats):
            for name, run in cases.items():
                _synchronize(device)
                start = time.perf_counter()
                run()
                _synchronize(device)
                if round_ >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compile_model(model: nn.Module, mode: str = "default", *, training: bool = False) -> None:
    """Compile a model in place: for training as a whole, as train.py does.

    For inference each pass is compiled by itself, since what is between depends on the data; on a
    CPU with its weights frozen, which saves oneDNN from rearranging them in every call. They must
    not change any more.
    """
    frozen = not training and mode == "default" and next(model.parameters()).device.type == "cpu"
    options: dict[str, Any] = {"options": {"freezing": True}} if frozen else {"mode": mode}
    if num_passes(model) > 1 and not training:
        two_pass: Any = model
        two_pass.compile_passes(**options)
    else:
        model.compile(**options)


@torch.inference_mode()
def threshold_for(model: nn.Module, images: Tensor, exit_fraction: float) -> float:
    """The threshold at which this share of these images exits, to the nearest whole image.

    The confidences of random images mean nothing; this states the share instead of the threshold.

    Args:
        images: (B, 3, S, S).

    Raises:
        ConfigError: no threshold lets so many exit, since confidences are equal.
    """
    exits = round(exit_fraction * len(images))
    if exits == 0:
        return NO_EXIT
    if exits == len(images):
        return 0.0
    confidence = early_exit(model, images, 0.0).confidence.sort(descending=True).values
    threshold = (confidence[exits - 1] + confidence[exits]).item() / 2
    if int((confidence >= threshold).sum()) != exits:
        raise ConfigError(
            f"exit_fractions: the model is equally confident about many of {len(images)} images, "
            f"so no threshold lets {exits} of them exit; pass exit_fractions=[0,1]"
        )
    return threshold


def peak_memory(
    run: Callable[[], object], device: torch.device, *, gradients: bool = False
) -> float | None:
    """Peak memory of one call in 1e6 bytes; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode(not gradients):
        run()
    return torch.cuda.max_memory_allocated(device) / 1e6

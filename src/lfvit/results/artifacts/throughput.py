"""Images per second of the models of an artifact, all timed in turns."""

from collections.abc import Hashable, Mapping
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from lfvit.data.augment import normalize
from lfvit.measure.throughput import PRECISIONS, compile_model, time_interleaved
from lfvit.models.passes import early_exit
from lfvit.results.artifacts.settings import Scale
from lfvit.results.collect import Run
from lfvit.results.page_examples import open_run
from lfvit.runs.trainers import find_device

Case = TypeVar("Case", bound=Hashable)


def images_per_second(cases: Mapping[Case, tuple[Run, float]], scale: Scale) -> dict[Case, float]:
    """Images per second of models at thresholds, each on a batch of its validation images.

    Args:
        cases: what to time, a model and the threshold eta; they take turns.
        scale: has the number of images and repetitions, and the precision.
    """
    device = find_device("auto")
    loaded = {run.folder: _load(run, scale, device) for run, _ in cases.values()}
    timed = {
        str(number): partial(early_exit, *loaded[run.folder], eta)
        for number, (run, eta) in enumerate(cases.values())
    }
    seconds = time_interleaved(timed, warmup=2, repeats=scale.speed_repeats, device=device)
    return {
        case: len(loaded[run.folder][1]) / median(times)
        for (case, (run, _)), times in zip(cases.items(), seconds.values(), strict=True)
    }


def _load(run: Run, scale: Scale, device: torch.device) -> tuple[Any, Tensor]:
    """A model as the scale times it, and a batch of its validation images."""
    trained, data = open_run(run)
    dtype = PRECISIONS[scale.speed_precision]
    model = trained.model.to(device, dtype)
    if scale.speed_compile:
        compile_model(model)
    samples = data.some_validation_samples(scale.speed_images)
    pixels = torch.stack([sample.pixels for sample in samples])
    return model, normalize(pixels.to(device), data.preprocessing).to(dtype)

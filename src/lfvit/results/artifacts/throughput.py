"""Images per second of the models of an artifact, all timed in turns."""

import json
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lfvit.data.augment import normalize
from lfvit.measure.thresholds import NO_EXIT
from lfvit.measure.throughput import PRECISIONS, compile_model, time_interleaved
from lfvit.models.passes import early_exit
from lfvit.results.artifacts.settings import Artifact, Scale
from lfvit.results.artifacts.tables import Results, Rows, Table, make_table, operating_point
from lfvit.results.collect import Run
from lfvit.results.page_examples import open_run
from lfvit.runs.setup import find_device


def make_timed_table(artifact: Artifact, results: Results) -> Table:
    """The table of an artifact, with images per second if it asks for them."""
    if "throughput" not in artifact.measures:
        return make_table(artifact, results)
    speeds, timings = measure_throughput(artifact, results)
    table = make_table(artifact, results, speeds)
    table.timings = timings
    return table


def measure_throughput(artifact: Artifact, results: Results) -> tuple[dict[int, float], Rows]:
    """Images per second of the rows' models on the same validation images, taking turns.

    Returns:
        Index of a row -> images per second, of the first seed; and rows of benchmark.json. These
        also have both ends of every model with early exit, between which its speed at any other
        share of exits lies.
    """
    scale, device = results.scale, find_device("auto")
    cases: list[tuple[int | None, Run, float]] = []  # row, run, threshold
    for index, row in enumerate(artifact.rows):
        for run in results.of(row)[:1]:
            point = operating_point(run.evaluation, row)
            alone = run.num_passes > 1 and getattr(point, "rule", "") == "pass 1"
            default = 0.0 if alone else NO_EXIT
            cases.append((index, run, default if point.threshold is None else point.threshold))
    several = {run.folder: run for _, run, _ in cases if run.num_passes > 1}
    cases += [(None, run, end) for run in several.values() for end in (0.0, NO_EXIT)]
    loaded = {run.folder: _load(run, scale, device) for _, run, _ in cases}
    timed = {
        str(i): partial(early_exit, *loaded[r.folder], eta) for i, (_, r, eta) in enumerate(cases)
    }
    seconds = time_interleaved(timed, warmup=2, repeats=scale.speed_repeats, device=device)
    speeds: dict[int, float] = {}
    rows: Rows = []
    for (row_index, run, eta), call, times in zip(
        cases, timed.values(), seconds.values(), strict=True
    ):
        evaluation, count = run.evaluation, len(loaded[run.folder][1])
        first, last = (evaluation.passes[i].gmacs for i in (0, -1))
        exits = None
        if run.num_passes > 1:
            with torch.inference_mode():
                exits = call().exited.double().mean().item()
        settings = {**evaluation.method, "reducer": evaluation.reducer}
        rows.append(
            {
                "task": "inference",
                "model": evaluation.method["name"],
                "settings": json.dumps({**settings, "ckpt_path": evaluation.checkpoint}),
                "precision": scale.speed_precision,
                "compiled": scale.speed_compile,
                "batch_size": count,
                "exits": exits if exits is None else f"measured at eta={eta:g}",
                "exit_fraction": exits,
                "gmacs": last - (exits or 0.0) * (last - first),
                "images_per_second": count / median(times),
            }
        )
        if row_index is not None:
            speeds[row_index] = count / median(times)
    return speeds, rows


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

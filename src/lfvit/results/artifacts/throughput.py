"""Images per second of the models of an artifact, all timed in turns."""

import json
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lfvit.data.datamodule import normalize
from lfvit.measure.thresholds import NO_EXIT
from lfvit.measure.throughput import PRECISIONS, compile_model, time_interleaved
from lfvit.models import early_exit
from lfvit.results.artifacts.settings import Artifact
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
    cases: list[tuple[int | None, Run, float | None]] = []  # row, run, threshold
    for index, row in enumerate(artifact.rows):
        if (run := results.first(row)) is not None:
            point = operating_point(run.evaluation, row)
            alone = getattr(point, "rule", "") == "pass 1" and run.num_passes > 1
            cases.append((index, run, 0.0 if alone else point.threshold))
    several = {run.folder: run for _, run, _ in cases if run.num_passes > 1}
    cases += [(None, run, end) for run in several.values() for end in (0.0, None)]
    models: dict[Any, tuple[Any, Tensor]] = {}
    rows: Rows = []
    for _, run, threshold in cases:
        if run.folder not in models:
            models[run.folder] = _on_device(run, results, device)
        rows.append(_facts(run, *models[run.folder], threshold))
        rows[-1] |= {"precision": scale.speed_precision, "compiled": scale.speed_compile}
    timed = {
        str(i): partial(early_exit, *models[run.folder], NO_EXIT if eta is None else eta)
        for i, (_, run, eta) in enumerate(cases)
    }
    seconds = time_interleaved(timed, warmup=2, repeats=scale.speed_repeats, device=device)
    speeds: dict[int, float] = {}
    for i, (row, (index, _, _)) in enumerate(zip(rows, cases, strict=True)):
        row["images_per_second"] = row["batch_size"] / median(seconds[str(i)])
        if index is not None:
            speeds[index] = row["images_per_second"]
    return speeds, rows


def _on_device(run: Run, results: Results, device: torch.device) -> tuple[Any, Tensor]:
    """A model as the scale times it, and a batch of its validation images."""
    scale = results.scale
    trained, data = open_run(run)
    dtype = PRECISIONS[scale.speed_precision]
    model: Any = trained.model.to(device, dtype)
    if scale.speed_compile:
        compile_model(model)
    samples = data.some_validation_samples(scale.speed_images)
    pixels = torch.stack([sample.pixels for sample in samples])
    return model, normalize(pixels.to(device)).to(dtype)


def _facts(run: Run, model: Any, images: Tensor, threshold: float | None) -> dict[str, Any]:
    """A row of benchmark.json without its speed; GMACs are those of the timed images."""
    evaluation = run.evaluation
    settings = {**evaluation.method, "reducer": evaluation.reducer}
    first, last = (evaluation.passes[i].gmacs for i in (0, -1))
    share = None
    if run.num_passes > 1:
        with torch.inference_mode():
            output = early_exit(model, images, NO_EXIT if threshold is None else threshold)
        share = output.exited.double().mean().item()
    return {
        "task": "inference",
        "model": evaluation.method["name"],
        "settings": json.dumps({**settings, "ckpt_path": evaluation.checkpoint}),
        "batch_size": len(images),
        "exits": None if share is None else "measured" if threshold else "stated",
        "exit_fraction": share,
        "gmacs": last - (share or 0.0) * (last - first),
    }

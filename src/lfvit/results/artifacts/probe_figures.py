"""Figures for which trained models are asked again, or every one of their answers is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lfvit.measure.predictions import Predictions
from lfvit.measure.thresholds import count_by_pass, pass_columns, sweep
from lfvit.results.artifacts.content import (
    SOURCE,
    Content,
    Findings,
    Rows,
    column,
    labelled,
    measure_columns,
)
from lfvit.results.artifacts.measures import ETAS, labels_of
from lfvit.results.artifacts.probes import OnePass, all_outputs, diagnosis, image_predictions
from lfvit.results.artifacts.spec import Artifact
from lfvit.results.figures import plot_depth, plot_groups, plot_one_block, plot_passes, plot_regions
from lfvit.results.old.diagnosis import PANELS

SIZES = ("small", "medium", "large")


def passes(artifact: Artifact, found: Findings) -> Content:
    """Right answers of each pass at every threshold, of the first seed."""
    (row,) = artifact.rows
    columns = [
        column("eta", "η", None, 2),
        column("right_first", "right in the first pass", "%", 2),
        column("right_second", "right in the second pass", "%", 2),
        *measure_columns("top1", "gmacs", "exits"),
    ]
    evaluation = found.first(row)
    if evaluation is None:
        return Content(columns, [])
    out = all_outputs(evaluation, found.folder)
    table = out.table()
    answers, _ = pass_columns(table)
    right = answers == table["target"].to_numpy()[:, None]
    counts = count_by_pass(table, [right], ETAS)[:, :, 0]  # by pass
    share = 100 / len(table)
    first, both = (1e9 * evaluation[key]["gmacs"] for key in ("first", "second"))
    rows: Rows = [
        {
            "eta": point["threshold"],
            "right_first": share * int(early),
            "right_second": share * int(late),
            "top1": point["top1"],
            "gmacs": point["gmacs"],
            "exits": 100 * point["exit_fraction"],
        }
        for point, (early, late) in zip(
            sweep(table, [first, both - first], ETAS).to_dict("records"), counts, strict=True
        )
    ]
    return Content(columns, rows, plot=partial(labelled, plot_passes, found, rows))


def regions(artifact: Artifact, found: Findings) -> Content:
    """The same images under several models."""
    columns = [
        column("number", "image"),
        column("class", "class"),
        column("model", "model"),
        column("answer", "answer"),
        column("pass", "answered by"),
        column("region", "window (row, column)"),
    ]
    known = {
        row["model"]: image_predictions(evaluation, artifact.examples)
        for row in artifact.rows
        if (evaluation := found.first(row)) is not None
    }
    rows: Rows = [
        {
            "number": number + 1,
            "class": one.classes[one.target or 0],
            "model": name,
            "answer": one.caption.partition("\n")[0],
            "pass": f"pass {one.exit_pass + 1}",
            "region": None if one.region is None else ", ".join(map(str, one.region)),
        }
        for name, seen in known.items()
        for number, one in enumerate(seen)
    ]
    if not known:
        return Content(columns, rows)
    pairs = [
        {name: seen[number] for name, seen in known.items()}
        for number in range(len(next(iter(known.values()))))
    ]
    return Content(
        columns,
        sorted(rows, key=lambda row: row["number"]),
        ["Colour: what the second pass sees in full resolution, or would have seen."],
        partial(labelled, plot_regions, found, pairs),
    )


def depth(artifact: Artifact, found: Findings) -> Content:
    """Panels of diagnose.json, and accuracy under noise on one of two sets of tokens."""
    (row,) = artifact.rows
    measures = {
        key: f"{title}: {legend}"
        for title in artifact.panels
        for key, (legend, _) in PANELS[title].items()
    }
    columns = [column("block", "block"), *(column(k, t, None, 3) for k, t in measures.items())]
    if artifact.noise:
        columns += [
            column("strength", "noise", "RMS of the tokens", 2),
            column("high", "top-1 with noise on HF tokens", "%", 2),
            column("low", "top-1 with noise on LF tokens", "%", 2),
        ]
    evaluation = found.first(row)
    if evaluation is None:
        return Content(columns, [])
    images = found.scale.probe_images
    told = diagnosis(evaluation, found.folder / "diagnosis", images)
    noise: Rows = []
    if artifact.noise:
        probe = OnePass(evaluation, images)
        middle = len(probe.vit.blocks) // 2 - 1
        noise = [
            {
                "strength": strength,
                "high": probe.noise_accuracy(middle, strength, high=True),
                "low": probe.noise_accuracy(middle, strength, high=False),
            }
            for strength in artifact.noise
        ]
    blocks = [{key: row[key] for key in ("block", *measures)} for row in told["rows"]]
    keys = [entry["key"] for entry in columns]
    rows: Rows = [{key: line.get(key) for key in keys} for line in [*blocks, *noise]]
    note = f"{told['images']} images. Block 0: what enters the first block."
    plot = partial(labelled, plot_depth, found, told["rows"], artifact.panels, noise)
    return Content(columns, rows, [note], plot)


def one_block(artifact: Artifact, found: Findings) -> Content:
    """Overlap with EViT's choice in every block, and accuracy with one reducing block."""
    (row,) = artifact.rows
    columns = [
        column("block", "block"),
        column("overlap", "overlap with EViT", "IoU", 3),
        column("frequency", "frequency-aware, top-1", "%", 2),
        column("evit", "EViT, top-1", "%", 2),
        column("whole", "no reduction, top-1", "%", 2),
    ]
    evaluation = found.first(row)
    if evaluation is None:
        return Content(columns, [])
    probe = OnePass(evaluation, found.scale.probe_images)
    whole, removed = probe.accuracy(), artifact.removed
    rows: Rows = [
        {
            "block": block + 1,
            "overlap": overlap,
            "frequency": probe.reduced_accuracy("frequency", block, removed=removed, windows=2),
            "evit": probe.reduced_accuracy("evit", block, keep_rate=1 - removed),
            "whole": whole,
        }
        for block, overlap in enumerate(probe.overlap(removed))
    ]
    note = f"{len(probe.targets)} images."
    return Content(columns, rows, [note], partial(labelled, plot_one_block, found, rows, whole))


def by_object_size(artifact: Artifact, found: Findings) -> Content:
    """Accuracy of the second pass and coverage, over all images and by size of the object."""
    columns = [
        column("image", "image"),
        column("selector", "selector"),
        column("object", "object"),
        column("images", "images"),
        column("first", "first pass top-1", "%", 2),
        column("second", "second pass top-1", "%", 2),
        column("covered", "object covered", "%", 1),
        column("whole", "object covered wholly", "%", 1),
        SOURCE,
    ]
    rows: Rows = []
    for row in artifact.rows:
        labels = {**labels_of(row), "source": found.source(row)}
        parts = _object_sizes([all_outputs(e, found.folder) for e in found.of(row)[:1]])
        rows += [{**labels, **part} for part in parts or [{"object": "all"}]]
    rows = [{entry["key"]: row.get(entry["key"]) for entry in columns} for row in rows]
    known = [row for row in rows if row["second"] is not None]
    if not known:
        return Content(columns, rows)
    axes = "object", "selector", "image", ("second", "second pass top-1 (%)")
    return Content(columns, rows, plot=partial(labelled, plot_groups, found, known, *axes))


def _object_sizes(outputs: Sequence[Predictions]) -> Rows:
    """Of one set of outputs, or none: all images, then thirds by the area of the box."""
    rows: Rows = []
    for out in outputs:
        groups = {"all": torch.ones(len(out.targets), dtype=torch.bool)}
        if out.boxes is not None:
            x0, y0, x1, y1 = out.boxes.double().unbind(1)
            rank = ((x1 - x0) * (y1 - y0)).argsort(stable=True).argsort()
            third = rank * len(SIZES) // len(rank)
            groups |= {name: third == i for i, name in enumerate(SIZES)}
        for name, chosen in groups.items():
            row: dict[str, Any] = {"object": name, "images": int(chosen.sum())}
            for key, logits in zip(("first", "second"), out.logits, strict=False):
                right = logits[chosen].argmax(dim=1) == out.targets[chosen]
                row[key] = 100 * right.double().mean().item()
            if out.covered is not None:
                covered = out.covered[chosen].double()
                row["covered"] = 100 * covered.mean().item()
                row["whole"] = 100 * (covered > 1 - 1e-6).double().mean().item()
            rows.append(row)
    return rows

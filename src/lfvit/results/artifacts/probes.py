"""Figures for which trained models are run again."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lfvit.data.augment import normalize
from lfvit.measure.diagnosis import diagnose_batch, summarize, trace_blocks
from lfvit.measure.spectrum import high_frequency_set
from lfvit.models.reduction import reduce, restore
from lfvit.results.artifacts.files import Column
from lfvit.results.artifacts.settings import Artifact, Scale
from lfvit.results.artifacts.tables import Results, Rows, Table
from lfvit.results.collect import Run
from lfvit.results.page_examples import open_run, predict_run
from lfvit.results.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PANELS,
    Panel,
    Paths,
    new_figure,
    plot_panels,
)
from lfvit.runs.trainers import find_device
from lfvit.tracking.pictures import Prediction, draw_frames, second_pass_image

BATCH = 64


class Probe:
    """A trained model with some of its validation images, spread over the classes.

    Args:
        run: of the model.
        count: number of images.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.device = find_device("auto")
        trained, data = open_run(run)
        self.model: Any = trained.model.to(self.device)
        self.record = trained.record
        self.samples = data.some_validation_samples(count)
        self.pixels = torch.stack([sample.pixels for sample in self.samples])  # (N, 3, S, S) uint8
        self.targets = torch.tensor([sample.target for sample in self.samples])

    def batches(self) -> Iterator[Tensor]:
        """Normalised images (B, 3, S, S) on the device."""
        for pixels in self.pixels.split(BATCH):
            yield normalize(pixels.to(self.device), self.record.preprocessing)

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Top-1 of a one-pass model on these images, in percent."""
        predictions = [self.model(images).argmax(dim=1).cpu() for images in self.batches()]
        return 100 * (torch.cat(predictions) == self.targets).double().mean().item()

    def noise_accuracy(self, block: int, strength: float, high: bool) -> float:
        """Accuracy with Gaussian noise on half of the patch tokens after a block.

        Args:
            block: from 0.
            strength: standard deviation in units of the tokens' root mean square.
            high: on the half that receives most attention in that block, or on the other.
        """
        prefix, generator = self.model.num_prefix_tokens, torch.Generator().manual_seed(0)

        def disturb(_: Any, __: Any, tokens: Tensor) -> Tensor:
            del traces[:-1]  # of earlier batches
            chosen = high_frequency_set(traces[0].received[block][:, prefix:], 0.5)  # (B, N)
            patches = tokens[:, prefix:]
            unit = patches.square().mean(dim=(1, 2), keepdim=True).sqrt()
            noise = torch.randn(patches.shape, generator=generator).to(patches)
            mask = (chosen if high else ~chosen)[:, :, None]
            return torch.cat([tokens[:, :prefix], patches + strength * unit * noise * mask], dim=1)

        handle = self.model.blocks[block].register_forward_hook(disturb)
        try:
            with trace_blocks(self.model.blocks) as traces:
                return self.accuracy()
        finally:
            handle.remove()

    @torch.inference_mode()
    def overlap(self, removed: float) -> list[float]:
        """Intersection over union of what frequency-aware reduction and EViT keep, by block.

        Both sets hold the share 1 - removed of the patch tokens: those that receive most attention
        from all tokens, and those that receive most from the class token.
        """
        prefix = self.model.num_prefix_tokens
        by_batch = []
        for images in self.batches():
            with trace_blocks(self.model.blocks) as traces:
                self.model(images)
            shares = []
            for received, of_class in zip(traces[0].received, traces[0].of_class, strict=True):
                frequency = high_frequency_set(received[:, prefix:], removed)
                evit = high_frequency_set(of_class[:, prefix - 1 :], removed)
                both, either = (frequency & evit).sum(dim=1), (frequency | evit).sum(dim=1)
                shares.append((both / either).cpu())  # (B,)
            by_batch.append(torch.stack(shares))
        return torch.cat(by_batch, dim=1).mean(dim=1).tolist()

    def reduced_accuracy(self, method: str, block: int, **options: Any) -> float:
        """Accuracy with a reducer in one block alone (from 0), nothing trained for it."""
        reduce(self.model, method, blocks=[block + 1], **options)
        try:
            self.model.to(self.device)
            return self.accuracy()
        finally:
            restore(self.model)


def depth(artifact: Artifact, scale: Scale, run: Run) -> Table:
    """Panels of a diagnosis, and accuracy under noise on one of two sets of tokens."""
    lines = {title: PANELS[title] for title in artifact.panels}
    columns = [Column("block", "block")]
    for title, measures in lines.items():
        columns += [Column(k, f"{title}: {text}", None, 3) for k, (text, _) in measures.items()]
    probe = Probe(run, scale.probe_images)
    rows: Rows = summarize([diagnose_batch(probe.model, x, 0.5) for x in probe.batches()])
    panels = [Panel(rows, ("block", "block"), title, lines[title]) for title in lines]
    if artifact.noise:
        columns += [
            Column("strength", "noise", "RMS of the tokens", 2),
            Column("high", "top-1 with noise on HF tokens", "%", 2),
            Column("low", "top-1 with noise on LF tokens", "%", 2),
        ]
        middle = len(probe.model.blocks) // 2 - 1
        noise: Rows = [
            {
                "strength": strength,
                "high": probe.noise_accuracy(middle, strength, high=True),
                "low": probe.noise_accuracy(middle, strength, high=False),
            }
            for strength in artifact.noise
        ]
        sets = {"high": ("noise on HF tokens", ORANGE), "low": ("noise on LF tokens", BLUE)}
        panels.append(Panel(noise, ("strength", "noise"), "top-1 (%)", sets))
        rows = [*rows, *noise]
    note = f"{len(probe.samples)} images. Block 0: what enters the first block."
    return Table(columns, rows, [note], partial(plot_panels, [panels]))


def one_block(artifact: Artifact, scale: Scale, run: Run) -> Table:
    """Overlap with EViT's choice in every block, and accuracy with one reducing block."""
    probe = Probe(run, scale.probe_images)
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
    lines = {
        "frequency": ("frequency-aware", ORANGE),
        "evit": ("EViT", BLUE),
        "whole": ("no reduction", GREY),
    }
    columns = [
        Column("block", "block"),
        Column("overlap", "overlap with EViT (IoU)", None, 3),
        *(Column(key, f"{name}, top-1", "%", 2) for key, (name, _) in lines.items()),
    ]
    overlaps = {"overlap": ("frequency-aware and EViT", GREEN)}
    panels = [
        Panel(rows, ("block", "block"), "overlap (IoU)", overlaps),
        Panel(rows, ("block", "reduced block"), "top-1 (%)", lines),
    ]
    note = f"{len(probe.samples)} images."
    return Table(columns, rows, [note], partial(plot_panels, [panels]))


def regions(artifact: Artifact, results: Results) -> Table:
    """The same images under several models with two passes."""
    drawn = {
        row.title: predict_run(run, artifact.examples)[0]
        for row in artifact.rows
        for run in results.of(row)[:1]
    }
    rows: Rows = [
        {
            "image": number,
            "class": prediction.classes[prediction.target or 0],
            "model": model,
            "prediction": f"{prediction.label}, {prediction.confidence:.0%}",
            "answered by": f"pass {prediction.exit_pass + 1}",
            "window (row, column)": prediction.region and "{}, {}".format(*prediction.region),
        }
        for number, images in enumerate(zip(*drawn.values(), strict=True), 1)
        for model, prediction in zip(drawn, images, strict=True)
    ]
    columns = [Column(key, key) for key in (rows[0] if rows else ("image", "model"))]
    plot = partial(plot_regions, drawn) if drawn else None
    note = "Colour: what the second pass sees in full resolution, or would have seen."
    return Table(columns, rows, [note], plot)


def plot_regions(
    predictions: Mapping[str, Sequence[Prediction]], paths: Paths, footnote: str
) -> None:
    """Images in rows, models in columns: fine patches in color, the rest pale.

    Args:
        predictions: model -> predictions on the same images.
    """
    images = next(iter(predictions.values()))
    columns = 1 + len(predictions)
    with new_figure(paths, 2.6 * columns, 2.7 * len(images) + 0.4, footnote) as figure:
        grid = figure.subplots(len(images), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image in zip(grid[:, 0], images, strict=True):
            axes.imshow(image.image)
        for line, (name, seen) in zip(grid.T[1:], predictions.items(), strict=True):
            for axes, prediction in zip(line, seen, strict=True):
                axes.imshow(second_pass_image(prediction))
                draw_frames(axes, prediction)
                axes.set_title(f"{name}: {prediction.caption}", fontsize=9)

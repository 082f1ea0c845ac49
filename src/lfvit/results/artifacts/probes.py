"""What an evaluation does not say, asked of its model and its images.

Everything here works on the contents of an evaluate.json, which name the checkpoint and the model
that was evaluated.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose
from torch import Tensor

from lfvit.commands.diagnose import diagnose
from lfvit.data.batches import Sample
from lfvit.data.datamodule import normalize
from lfvit.measure.predictions import Predictions, predict_all
from lfvit.measure.spectrum import high_frequency_set, received_attention
from lfvit.measure.throughput import PRECISIONS, compile_model, time_interleaved
from lfvit.models import reduce, restore
from lfvit.models.attention import class_attention
from lfvit.models.two_pass import TwoPassViT
from lfvit.results.artifacts.measures import Evaluation
from lfvit.runs.devices import find_device, prediction_trainer
from lfvit.runs.setup import Trained, load_trained, open_data
from lfvit.tracking.pictures import Prediction, predict_images

BATCH = 64


def reload(evaluation: Evaluation) -> Trained:
    """The model of an evaluation, as it was evaluated."""
    settings = {key: evaluation[key] for key in ("method", "backbone", "reducer", "image_size")}
    return load_trained(evaluation["checkpoint"], settings)


def some_samples(trained: Trained, count: int) -> list[Sample]:
    """Some of the images a model was evaluated on, spread over the classes."""
    return open_data(None, trained.record).some_validation_samples(count)


def all_outputs(evaluation: Evaluation, folder: Path) -> Predictions:
    """Outputs of every pass for every validation image."""
    model, record = reload(evaluation)
    cfg = compose("evaluate")
    data = open_data(cfg.get("data"), record)
    return predict_all(prediction_trainer(cfg, folder), model, data, record.seed)


def diagnosis(evaluation: Evaluation, folder: Path, images: int) -> dict[str, Any]:
    """The contents of diagnose.json, with two sets of tokens of equal size."""
    cfg = compose("diagnose", ["removed=0.5", f"images={images}"])
    cfg.ckpt_path, cfg.run_dir = evaluation["checkpoint"], str(folder)
    return diagnose(cfg)


def image_predictions(evaluation: Evaluation, count: int) -> list[Prediction]:
    """Predictions of a model on some of its validation images."""
    trained = reload(evaluation)
    record = trained.record
    samples = some_samples(trained, count)
    return predict_images(
        trained.model,
        torch.stack([sample.pixels for sample in samples]),
        record.classes,
        record.threshold,
        [sample.target for sample in samples],
        [sample.box for sample in samples],
    )


Point = tuple[Evaluation, Mapping[str, Any]]
"""An evaluation and one of its operating points; a point with a threshold exits early."""


def throughput(
    points: Sequence[Point],
    images: int,
    repeats: int,
    precision: str = "fp32",
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Images per second of several models on the same validation images, all taking turns.

    Args:
        points: what to time.
        images: in the one batch that is timed.
        repeats: timed rounds; the median counts.
        precision, compiled: of all models alike, see `lfvit.measure.throughput.PRECISIONS`.

    Returns:
        For every point a row as benchmark.py writes them. ``exit_fraction`` and ``gmacs`` are those
        of the timed images.
    """
    device, dtype = find_device("auto"), PRECISIONS[precision]
    models: dict[int, Any] = {}
    batches: dict[int, Tensor] = {}
    cases, rows = {}, []
    for number, (evaluation, point) in enumerate(points):
        size = evaluation["image_size"]
        if id(evaluation) not in models:
            trained = reload(evaluation)
            models[id(evaluation)] = trained.model.to(device, dtype)
            if compiled:
                compile_model(trained.model)
            if size not in batches:
                pixels = [sample.pixels for sample in some_samples(trained, images)]
                batches[size] = normalize(torch.stack(pixels)).to(device, dtype)
        run, facts = _case(evaluation, point, models[id(evaluation)], batches[size])
        cases[str(number)] = run
        count = len(batches[size])
        rows.append({**facts, "precision": precision, "compiled": compiled, "batch_size": count})
    seconds = time_interleaved(cases, warmup=2, repeats=repeats, device=device)
    for number, row in enumerate(rows):
        row["images_per_second"] = row["batch_size"] / median(seconds[str(number)])
    return rows


def _case(
    evaluation: Evaluation, point: Mapping[str, Any], model: Any, images: Tensor
) -> tuple[Callable[[], object], dict[str, Any]]:
    """What is timed, and the facts known before."""
    settings = {
        **evaluation["method"],
        "reducer": evaluation["reducer"],
        "ckpt_path": evaluation["checkpoint"],
    }
    facts = {
        "task": "inference",
        "model": evaluation["method"]["name"],
        "settings": json.dumps(settings),
    }
    if not isinstance(model, TwoPassViT):
        gmacs = evaluation["first"]["gmacs"]
        facts |= {"exits": None, "exit_fraction": None, "gmacs": gmacs}
        return partial(model, images), facts
    threshold = 0.0 if point is evaluation["first"] else point.get("threshold", 2.0)
    with torch.inference_mode():
        share = model.infer(images, threshold).exited.double().mean().item()
    first, second = (evaluation[name]["gmacs"] for name in ("first", "second"))
    facts |= {
        "exits": f"measured at eta={threshold:g}" if "threshold" in point else "stated",
        "exit_fraction": share,
        "gmacs": share * first + (1 - share) * second,
    }
    return partial(model.infer, images, threshold), facts


# --- inside a one-pass ViT ------------------------------------------------------------------------


class OnePass:
    """A one-pass ViT with some of its validation images, on the device.

    Args:
        evaluation: of the model, which has no reducer.
        count: of images.
    """

    def __init__(self, evaluation: Evaluation, count: int) -> None:
        trained = reload(evaluation)
        samples = some_samples(trained, count)
        self.device = find_device("auto")
        self.vit: Any = trained.model.to(self.device)
        self.pixels = torch.stack([sample.pixels for sample in samples])
        self.targets = torch.tensor([sample.target for sample in samples])

    def batches(self) -> Iterator[Tensor]:
        for pixels in self.pixels.split(BATCH):
            yield normalize(pixels.to(self.device))

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Top-1 in percent on these images."""
        answers = [self.vit(images).argmax(dim=1).cpu() for images in self.batches()]
        return 100 * (torch.cat(answers) == self.targets).double().mean().item()

    def noise_accuracy(self, block: int, strength: float, high: bool) -> float:
        """Accuracy with Gaussian noise on half of the patch tokens after a block.

        Args:
            block: from 0.
            strength: standard deviation in units of the tokens' root mean square.
            high: on the half that receives most attention in that block, or on the other.
        """
        prefix, generator = self.vit.num_prefix_tokens, torch.Generator().manual_seed(0)

        def disturb(_: Any, __: Any, tokens: Tensor) -> Tensor:
            chosen = high_frequency_set(seen["received"][:, prefix:], 0.5)  # (B, N)
            patches = tokens[:, prefix:]
            unit = patches.square().mean(dim=(1, 2), keepdim=True).sqrt()
            noise = torch.randn(patches.shape, generator=generator).to(patches)
            mask = (chosen if high else ~chosen)[:, :, None]
            return torch.cat([tokens[:, :prefix], patches + strength * unit * noise * mask], dim=1)

        with self._listen() as rows:
            seen: dict[str, Any] = rows[block]
            handle = self.vit.blocks[block].register_forward_hook(disturb)
            try:
                return self.accuracy()
            finally:
                handle.remove()

    @torch.inference_mode()
    def overlap(self, removed: float) -> list[float]:
        """Intersection over union of what frequency-aware reduction and EViT keep, by block.

        Both sets hold the share 1 - removed of the patch tokens: those that receive most attention
        from all tokens, and those that receive most from the class token.
        """
        found: list[list[Tensor]] = [[] for _ in self.vit.blocks]
        prefix = self.vit.num_prefix_tokens
        with self._listen() as rows:
            for images in self.batches():
                self.vit(images)
                for row, values in zip(rows, found, strict=True):
                    frequency = high_frequency_set(row["received"][:, prefix:], removed)
                    evit = high_frequency_set(row["class"][:, prefix - 1 :], removed)
                    both = (frequency & evit).sum(dim=1)
                    values.append((both / (frequency | evit).sum(dim=1)).cpu())
        return [torch.cat(values).mean().item() for values in found]

    def reduced_accuracy(self, method: str, block: int, **options: Any) -> float:
        """Accuracy with a reducer in one block alone (from 0), nothing trained for it."""
        reduce(self.vit, method, blocks=[block + 1], **options)
        try:
            self.vit.to(self.device)
            return self.accuracy()
        finally:
            restore(self.vit)

    @contextmanager
    def _listen(self) -> Iterator[list[dict[str, Tensor]]]:
        """The attention that tokens receive in every block of the latest forward."""
        rows: list[dict[str, Tensor]] = [{} for _ in self.vit.blocks]

        def attend_with(attn: Any, row: dict[str, Tensor]) -> Any:
            def attend(_: Any, __: Any, qkv: Tensor) -> None:
                q, k, _v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
                q, k = attn.q_norm(q), attn.k_norm(k)
                row["received"] = received_attention(q, k, attn.scale)
                row["class"] = class_attention(attn, q, k)

            return attend

        handles = [
            block.attn.qkv.register_forward_hook(attend_with(block.attn, row))
            for block, row in zip(self.vit.blocks, rows, strict=True)
        ]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()

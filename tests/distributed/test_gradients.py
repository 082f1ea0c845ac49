"""Two processes learn from a batch what one process learns from it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from together import together

import lfvit
from conftest import TINY
from lfvit.data import Batch
from lfvit.models.reduction import unreduced
from lfvit.models.tokens import downsample
from lfvit.training.module import Classifier
from lfvit.training.settings import Schedule
from small_vits import randomise

FREQUENCY = {"name": "frequency", "removed": 0.3, "windows": 1, "blocks": [2, 4]}
DYNAMIC = {"name": "dynamic_vit", "blocks": [2, 4], "token_weight": 50.0}
SIZE = 64  # pixels
MODELS: dict[str, tuple[str, dict, dict]] = {
    "vit": ("vit", TINY, {}),
    "vit, frequency, distilled": ("vit", TINY, {"reducer": FREQUENCY}),
    "vit, dynamic_vit, distilled": ("vit", TINY, {"reducer": DYNAMIC}),
    "vit, evit": ("vit", TINY, {"reducer": {"name": "evit", "blocks": [2, 4]}}),
    "vit, tome": ("vit", TINY, {"reducer": {"name": "tome", "r": 4}}),
    "lf_vit": ("lf_vit", TINY, {"region_size": 3}),
    "lf_vit, frequency, distilled": ("lf_vit", TINY, {"reducer": {**FREQUENCY, "passes": "both"}}),
    "cf_vit": ("cf_vit", TINY, {}),
}
CASES = [(name, phase) for name in MODELS for phase in (1, 2) if phase == 2 or "f_vit" in name]


def classifier(name: str) -> Any:
    method, backbone, options = MODELS[name]
    torch.manual_seed(1)
    model = lfvit.create_model(method, backbone=backbone, image_size=SIZE, num_classes=4, **options)
    randomise(model, seed=3)  # so that images differ in what is kept of them
    distilled = "distilled" in name
    schedule = Schedule(distill_weight=float(distilled))
    teacher = unreduced(model) if distilled else None
    module = Classifier(model, schedule, num_classes=4, selection_epoch=1, teacher=teacher)
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(image_size=SIZE))
    return module.train()


class Step(torch.nn.Module):
    """What DDP wraps: the training step, in one of the two phases."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.module.training_step(batch, 0)


def gradients(step: Any, module: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Of every weight, and what batch norms remember of the batch."""
    module.zero_grad()
    step(batch).backward()
    found = {name: weight.grad.clone() for name, weight in module.named_parameters()}
    return found | {name: value.clone() for name, value in module.model.named_buffers()}


def every_gradient() -> dict[str, float]:
    """In each process: how far the gradients of both are from those of one, per case."""
    from torch.nn.parallel import DistributedDataParallel

    F.gumbel_softmax = above_average  # chance is each process's own
    Classifier.log = lambda *_, **__: None
    Classifier.device = torch.device("cpu")
    torch.distributed.init_process_group("gloo")
    rank, batch, found = torch.distributed.get_rank(), full_batch(), {}
    mine = Batch(*(part[2 * rank : 2 * rank + 2] for part in batch[:3]), None)
    for name, phase in CASES:
        Classifier.current_epoch = phase - 1
        one, module = Step(classifier(name)), classifier(name)
        expected = gradients(one, one.module, batch)
        ours = gradients(DistributedDataParallel(Step(module)), module, mine)
        found[f"{name}, phase {phase}"] = distance(ours, expected)
    return found


def above_average(logits: torch.Tensor, hard: bool) -> torch.Tensor:
    """A decision without chance, by which images keep different numbers of tokens."""
    keep = logits[..., :1] > logits[..., :1].mean(dim=1, keepdim=True)
    soft = logits.softmax(dim=-1)
    return torch.cat([keep, ~keep], dim=-1).float() + soft - soft.detach()


def full_batch() -> Batch:
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    images *= torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None, None]  # of unequal weight
    return Batch(images, downsample(images), torch.tensor([0, 1, 2, 3]), None)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a share of the largest value of its kind."""
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-4)).item()
        for name, value in theirs.items()
        if value.numel()
    )


@pytest.fixture(scope="module")
def distances() -> list[dict[str, float]]:
    return together(2, every_gradient)


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_two_processes_learn_what_one_does(distances, name, phase):
    """Each has two of the four images."""
    for of_rank in distances:
        assert of_rank[f"{name}, phase {phase}"] < 1e-3

"""Reducers in training, and the weights that it averages."""

import shutil

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.data import Batch
from lfvit.errors import CheckpointError, ConfigError
from lfvit.models.reduction import forward_tokens
from lfvit.models.tokens import downsample
from lfvit.runs.models import load_trained
from lfvit.training.module import Classifier
from lfvit.training.settings import Schedule
from reference_reduction import dynamic_vit_training_loss


def model(method, reducer, **options):
    settings = {} if reducer is None else {"reducer": {"name": reducer, **options}}
    return lfvit.create_model(method, backbone=TINY, image_size=112, num_classes=4, **settings)


def test_the_loss_of_dynamic_vit_is_the_released_one(monkeypatch):
    monkeypatch.setattr(Classifier, "log", lambda *args, **kwargs: None)
    student = model("vit", "dynamic_vit").double()
    teacher = model("vit", None).double()
    schedule = Schedule(distill_weight=0.5)
    module = Classifier(student, schedule, num_classes=4, teacher=teacher).train()
    images = torch.randn(3, 3, 112, 112, dtype=torch.float64)
    labels = torch.rand(3, 4, dtype=torch.float64).softmax(1)
    torch.manual_seed(1)
    loss = module.training_step(Batch(images, downsample(images), labels), 0)
    torch.manual_seed(1)  # the same tokens are dropped
    logits, tokens, state = forward_tokens(student, images)
    taught, their_tokens, _ = forward_tokens(teacher, images)
    kept = [mask[..., 0] for mask in state.memory.stages]
    assert 0 < kept[-1].mean() < 1
    expected = dynamic_vit_training_loss(
        logits, labels, taught, 0.5, kept, 0.7, tokens, their_tokens, 2.0, 0.5
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)  # masks are float32
    loss.backward()
    for name, parameter in student.blocks.reducer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    with pytest.raises(ConfigError, match="compile=false"):
        Classifier(student, schedule, num_classes=4, compile_passes=True)


def test_raw_weights_beside_averaged_ones(trained_run, tmp_path):
    path = shutil.copy(trained_run / "checkpoints" / "last.ckpt", tmp_path)
    content = torch.load(path, weights_only=True)
    for averaged, key in ((True, "state_dict"), (False, "current_model_state")):
        for name, weight in load_trained(path, averaged=averaged).model.state_dict().items():
            assert torch.equal(weight, content[key][f"model.{name}"])
    raw, mean = content["current_model_state"], content["state_dict"]
    assert not torch.equal(raw["model.backbone.head.weight"], mean["model.backbone.head.weight"])
    del content["current_model_state"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no raw weights beside its own"):
        load_trained(path, averaged=False)

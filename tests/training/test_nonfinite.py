"""Losses and gradients that are not finite, in one process and in two."""

import copy
import os
from itertools import product
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.nn.utils import get_total_norm

from conftest import NEEDLE_FAST
from lfvit.commands.train import train
from lfvit.errors import TrainingError
from lfvit.training.callbacks import EMA, find_nonfinite
from lfvit.training.module import Classifier

ONE_EPOCH = (*NEEDLE_FAST, "trainer.max_epochs=1", "lr_scheduler.warmup_epochs=0")  # four steps
SKIP = "callbacks.nonfinite.action=skip"


@pytest.fixture(autouse=True)
def environment():
    """Lightning leaves the port of its processes there."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def damage(monkeypatch):
    """Have something done to the batch of some steps, or to the gradients of some."""

    def arrange(at, *, rank=0, batch=None, gradient=None):
        start = Classifier.on_train_batch_start
        backward = Classifier.on_after_backward

        def on_train_batch_start(self, given, batch_idx):
            start(self, given, batch_idx)
            if batch is not None and batch_idx in at and self.global_rank == rank:
                batch(given)

        def on_after_backward(self):
            backward(self)
            if gradient is not None and self.trainer.fit_loop.batch_idx in at:
                gradient(self)

        monkeypatch.setattr(Classifier, "on_train_batch_start", on_train_batch_start)
        monkeypatch.setattr(Classifier, "on_after_backward", on_after_backward)

    return arrange


def no_number(batch):
    batch.images[1, 0, 5, 5] = torch.nan
    batch.coarse_images[1, 0, 2, 2] = torch.nan


def one_infinite(module):
    module.model.backbone.head.weight.grad[2, 3] = torch.inf


def test_a_loss_that_is_not_finite_stops_training(composed, damage, tmp_path):
    damage([2], batch=no_number)
    message = r"the loss is nan at epoch 0, batch 2 \(step 2\)\. Lower optimizer\.lr"
    with pytest.raises(TrainingError, match=message):
        train(composed("train", *ONE_EPOCH, f"run_dir={tmp_path}"))


def test_a_gradient_that_is_not_finite_names_itself(composed, damage, tmp_path):
    damage([1], gradient=one_infinite)
    message = r"loss is finite, but the gradient of model\.backbone\.head\.weight is not"
    with pytest.raises(TrainingError, match=message):
        train(composed("train", *ONE_EPOCH, f"run_dir={tmp_path}"))


def test_a_skipped_step_leaves_weights_moments_and_average_alone(composed, damage, tmp_path):
    before = {}

    def look_then_spoil(batch):
        before["weights"] = copy.deepcopy(running[0].state_dict())
        (average,) = (c for c in running[0].trainer.callbacks if isinstance(c, EMA))
        before["average"] = copy.deepcopy(average._average_model.module.state_dict())
        no_number(batch)

    damage([3], batch=look_then_spoil)
    running = []
    settings = (*ONE_EPOCH, "callbacks.checkpoint=null", "optimizer.lr=0.001", SKIP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_fit_start", lambda self: running.append(self))
        metrics = train(composed("train", *settings, f"run_dir={tmp_path}"))
    assert metrics["train/skipped_steps"] == 1
    assert metrics["steps"] == 4  # the schedule goes on
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, key in (("weights", "current_model_state"), ("average", "state_dict")):
        assert before[name].keys() == checkpoint[key].keys()
        assert all(torch.equal(checkpoint[key][k], before[name][k]) for k in before[name])
    moments = checkpoint["optimizer_states"][0]["state"]
    assert {int(state["step"]) for state in moments.values()} == {3}
    assert checkpoint["callbacks"]["NonFiniteGuard"] == {
        **{"skipped": 1, "in_a_row": 1},
        "last_skipped": 3,  # accumulated batches after a resume are not averaged a second time
    }
    assert "train/skipped_steps" in (tmp_path / "metrics.csv").read_text()


def test_so_many_steps_in_a_row_stop_training_all_the_same(composed, damage, tmp_path):
    damage([1, 2, 3], batch=no_number)
    settings = (*ONE_EPOCH, SKIP, "callbacks.nonfinite.max_skipped=2", f"run_dir={tmp_path}")
    with pytest.raises(TrainingError, match=r"batch 3 .* after 2 skipped steps"):
        train(composed("train", *settings))


def test_an_accumulated_step_names_the_batch_that_spoilt_it(composed, damage, tmp_path, caplog):
    damage([0], batch=no_number)
    settings = (*ONE_EPOCH, SKIP, "trainer.accumulate_grad_batches=2")
    metrics = train(composed("train", *settings, f"run_dir={tmp_path}"))
    assert (metrics["steps"], metrics["train/skipped_steps"]) == (2, 1)
    assert "skipped a step, 1 so far: the loss is nan at epoch 0, batch 0" in caplog.text


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_two_processes_decide_alike(composed, damage, tmp_path, action):
    """One of them meets a bad batch. The other one neither hangs nor takes the step."""
    damage([1], rank=1, batch=no_number)
    two = ("trainer.devices=2", "+trainer.strategy=ddp_fork", "logger=none")
    action_ = f"callbacks.nonfinite.action={action}"
    cfg = composed("train", *ONE_EPOCH, *two, action_, f"run_dir={tmp_path}")
    if action == "stop":
        with pytest.raises(Exception, match=r"TrainingError: the loss is (nan|finite, but)"):
            train(cfg)
    else:
        assert train(cfg)["train/skipped_steps"] == 1
        checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_the_scaler_of_half_precision_is_left_to_itself(composed, damage, tmp_path, monkeypatch):
    """Gradients that overflow are its business: it lowers the scale and leaves the step out."""

    class Half(MixedPrecision):
        """float16 with its scaler on a CPU, where Lightning takes bfloat16 instead."""

        def __init__(self, precision, device):
            super().__init__("16-mixed", device, torch.amp.GradScaler(device))

    target = "lightning.pytorch.trainer.connectors.accelerator_connector.MixedPrecision"
    monkeypatch.setattr(target, Half)
    damage([1], gradient=one_infinite)
    half = (*ONE_EPOCH, "trainer.precision=bf16-mixed")
    assert train(composed("train", *half, f"run_dir={tmp_path / 'a'}"))["steps"] == 4
    checkpoint = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    (scaler,) = (value for key, value in checkpoint.items() if key.endswith("Half"))
    assert scaler["scale"] == 2.0**15
    steps = checkpoint["optimizer_states"][0]["state"].values()
    assert {int(state["step"]) for state in steps} == {3}


def test_one_value_among_many_is_found():
    tensors = {"a": torch.full((2, 3), 1e30), "b": torch.zeros(0), "c": torch.full((7,), -3e38)}
    assert find_nonfinite(tensors) is None  # large, and a plain norm would overflow
    assert not get_total_norm([tensors["a"], tensors["c"]]).isfinite()
    for value, place in product((torch.nan, torch.inf, -torch.inf), (0, 3, 6)):
        tensors["c"] = torch.full((7,), -3e38).index_fill(0, torch.tensor(place), value)
        assert find_nonfinite(tensors) == "c"

"""Learning rates of every step, optimizers and schedulers from the command line, phases."""

import math

import pytest
import torch
from torch import nn

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands.train import instantiate_partial, train
from lfvit.errors import ConfigError
from lfvit.runs.models import build_model
from lfvit.training.optimizers import build_lr_scheduler, build_optimizer
from lfvit.training.settings import Schedule
from lfvit.utils.validation import validate


def learning_rates(cfg, epochs, steps, images_per_step):
    """Of all steps of a training."""
    scale = images_per_step / cfg.schedule.lr_batch
    optimizer = build_optimizer(nn.Linear(2, 2), instantiate_partial(cfg, "optimizer"), scale)
    config = build_lr_scheduler(optimizer, instantiate_partial(cfg, "lr_scheduler"), epochs, steps)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        assert all(group["lr"] == rates[-1] for group in optimizer.param_groups)
        config["scheduler"].step_update(step + 1)
    return rates


@pytest.mark.parametrize(
    ("recipe", "epochs", "steps_per_epoch", "batch", "lr", "lr_batch", "warmup", "start", "end"),
    [
        ("lf_vit", 350, 7, 1024, 5e-4, 512, 5, 0, 350),
        ("cf_vit_lv_vit", 310, 3, 1024, 8e-4, 512, 5, 0, 300),
        ("needle", 5, 157, 32, 1e-3, 32, 0.5, 0.5, 5),
        ("frequency", 30, 3, 1024, 1e-4, 1024, 0, 0, 30),
    ],
)
def test_warm_up_and_cosine(
    composed, recipe, epochs, steps_per_epoch, batch, lr, lr_batch, warmup, start, end
):
    """DeiT's: linear from 1e-6 to the peak, then a half cosine from `start` to 1e-5 at `end`."""
    peak, expected = lr * batch / lr_batch, []
    for step in range(epochs * steps_per_epoch):
        epoch = step / steps_per_epoch
        if epoch < warmup:
            expected.append(1e-6 + (peak - 1e-6) * epoch / warmup)
        else:
            share = min((epoch - start) / (end - start), 1)
            expected.append(1e-5 + (peak - 1e-5) * 0.5 * (1 + math.cos(math.pi * share)))
    cfg = composed("train", f"schedule={recipe}")
    assert cfg.trainer.max_epochs == epochs
    rates = learning_rates(cfg, epochs, epochs * steps_per_epoch, batch)
    assert rates == pytest.approx(expected, rel=1e-9)


def test_short_constant_and_step(composed):
    cfg = composed("train", "schedule=lf_vit")  # shorter than its warm-up
    expected = [1e-6 + i * 2.5e-5 for i in range(4)]
    assert learning_rates(cfg, 1, 4, 512) == pytest.approx(expected, rel=0.1)
    cfg = composed("train", "schedule=lf_vit", "lr_scheduler.sched=constant")
    assert learning_rates(cfg, 20, 20, 512)[5:] == [5e-4] * 15
    step = ("sched=step", "warmup_prefix=false", "decay_epochs=8", "decay_rate=0.1")
    cfg = composed("train", "schedule=lf_vit", *(f"lr_scheduler.{s}" for s in step))
    assert learning_rates(cfg, 20, 40, 512)[12::16] == pytest.approx([5e-4, 5e-5])


def test_the_backbone_learns_less_than_what_is_new_or_not_at_all(composed, tmp_path):
    """DynamicViT's: predictors alone until `backbone_start`, then the backbone with its share."""
    rates, weights = [], []

    def look(self, *_):
        groups = self.optimizers().param_groups
        rates.append({g["backbone"]: g["lr"] for g in groups})
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})

    overrides = ["method=vit", "reducer=dynamic_vit", "schedule.backbone_lr=0.01"]
    overrides += ["data.train_images=16", f"init_from={tmp_path / 'start.pth'}"]
    overrides += ["schedule.backbone_start=1", "schedule.frozen=[cls_token,pos_embed]"]
    model = build_model(composed("train", *NEEDLE_FAST, *overrides[:2]), 6)
    torch.save(model.state_dict(), tmp_path / "start.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lfvit.training.module.Classifier.on_before_optimizer_step", look)
        patch.setattr("lfvit.training.module.Classifier.on_fit_end", look)
        train(composed("train", *NEEDLE_FAST, *overrides, f"run_dir={tmp_path}"))
    steps = len(rates) - 1
    assert steps == 4
    assert [one[True] for one in rates[:2]] == [0.0] * 2
    for one in rates[2:steps]:
        assert one[True] == pytest.approx(0.01 * one[False])
    start, middle, end = weights[0], weights[2], weights[-2]
    for name in start:
        frozen = name in ("cls_token", "pos_embed")
        assert torch.equal(start[name], middle[name]) == ("reducer" not in name), name
        assert torch.equal(middle[name], end[name]) == frozen, name


PLATEAU = "lr_scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"


@pytest.mark.parametrize(
    ("overrides", "optimizer", "scheduler"),
    [
        (["optimizer=lion", "lr_scheduler=torch"], "Lion", "OneCycleLR"),
        (["optimizer._target_=torch.optim.SGD", "lr_scheduler=torch", PLATEAU], "SGD", "ReduceLR"),
    ],
)
def test_any_optimizer_and_scheduler(composed, tmp_path, overrides, optimizer, scheduler):
    """Others are trained by tests/test_extending.py."""
    built = []
    fast = [override for override in NEEDLE_FAST if "warmup" not in override]
    fast += ["trainer.max_epochs=1", "data.train_images=16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lfvit.training.module.Classifier.on_fit_end",
            lambda self: built.extend([self.optimizers(), self.lr_schedulers()]),
        )
        metrics = train(composed("train", *fast, *overrides, f"run_dir={tmp_path}"))
    assert metrics["steps"] == 2
    assert type(built[0].optimizer).__name__ == optimizer
    assert type(built[1]).__name__.startswith(scheduler)


def test_phase_two_starts_at_an_epoch_or_a_fraction():
    for start, epoch in ((0, 0), (3, 3), (0.5, 5), (0.66, 7), (10, 10), (1, 1), (1.0, 1)):
        assert Schedule(selection_start=start).selection_epoch(10) == epoch


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"selection_start": 230.5}, "schedule.selection_start=230.5 is not valid: a whole number"),
        ({"lr_batch": 0}, "schedule.lr_batch=0"),
        ({"loss": "mse"}, "schedule.loss='mse' is unknown; valid: 'ce_kl' or 'ce_ce'"),
        ({"layer_decay": 0.0}, "schedule.layer_decay=0.0"),
        ({"leaning_rate": 1}, "schedule.leaning_rate is no setting; valid: aux_weight"),
    ],
)
def test_wrong_schedules(setting, message):
    with pytest.raises(ConfigError, match=message):
        validate(Schedule, setting, "schedule")


@pytest.mark.parametrize(("method", "scheduler"), [("vit", "torch"), ("lf_vit", "cosine")])
def test_layers_learn_the_slower_the_earlier_they_are(composed, tiny, method, scheduler):
    """The first block with 0.5^5 of the full rate, which the head and all that is new have."""
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=4)
    cfg = composed("train", "schedule=pretrained", f"lr_scheduler={scheduler}")
    optimizer = build_optimizer(model, instantiate_partial(cfg, "optimizer"), 2.0, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def shares():
        rates = {
            names[id(parameter)].removeprefix("backbone."): group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        return {name: rate / rates["head.weight"] for name, rate in rates.items()}, rates

    def check(found):
        assert len(found) == len(names)
        assert found["blocks.4.mlp.fc1.weight"] == found["norm.weight"] == 0.5
        assert found["blocks.0.attn.qkv.bias"] == 0.5**5
        first = [name for name in found if "pos_embed" in name or name.startswith("patch_embed")]
        assert {found[name] for name in first} == {0.5**6}
        assert all(found[name] == 1 for name in found if name.startswith("reuse"))

    found, rates = shares()
    check(found)
    assert rates["head.weight"] == 2 * cfg.optimizer.lr
    config = build_lr_scheduler(optimizer, instantiate_partial(cfg, "lr_scheduler"), 4, 40)
    optimizer.step()
    config["scheduler"].step_update(10) if scheduler == "cosine" else config["scheduler"].step()
    check(shares()[0])

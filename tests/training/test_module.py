"""Phases, teachers, averaged weights, and what a training may start from."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.optim.swa_utils import AveragedModel

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands.train import build_module, train
from lfvit.data import Batch
from lfvit.errors import CheckpointError, ConfigError, TrainingError
from lfvit.models.reduction import unreduced
from lfvit.runs.models import build_model, load_trained
from lfvit.runs.resume import check_resume
from lfvit.training.callbacks import EMA
from lfvit.training.losses import kl_divergence
from lfvit.training.module import Classifier
from lfvit.training.optimizers import build_optimizer
from lfvit.training.settings import Schedule
from lfvit.utils.atomic_io import read_json


def classifier(tiny, method="lf_vit", **schedule):
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=4)
    return Classifier(model, Schedule(**schedule), num_classes=4, selection_epoch=2)


def batch(images=None):
    images = torch.randn(2, 3, 112, 112) if images is None else images
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    return Batch(images, images[..., ::2, ::2], targets, None)


@pytest.fixture
def at_epoch(monkeypatch):
    def set_epoch(epoch):
        monkeypatch.setattr(Classifier, "current_epoch", property(lambda self: epoch))
        monkeypatch.setattr(Classifier, "log", lambda *args, **kwargs: None)

    return set_epoch


def test_phase_one_sees_the_whole_image_and_phase_two_selects(tiny, at_epoch):
    module = classifier(tiny)
    used = []
    original = module.model.select
    module.model.select = lambda gca, selector=None: (
        used.append(selector) or original(gca, selector)
    )
    for epoch in range(4):
        at_epoch(epoch)
        module.training_step(batch(), 0)
    assert used == ["none", "none", None, None]


@pytest.mark.parametrize(("method", "half"), [("vit", True), ("lf_vit", True), ("lf_vit", False)])
def test_attention_is_fused_unless_its_gradient_is_slow(tiny, at_epoch, method, half):
    """In bfloat16 on a CPU; afterwards the model is as it was, also after an error."""
    at_epoch(4)
    module = classifier(tiny, method)
    layers = [m for m in module.modules() if hasattr(m, "fused_attn")]
    layers[0].fused_attn = False  # as someone asked for
    seen = []
    layers[1].q_norm.register_forward_pre_hook(lambda *_: seen.append(layers[1].fused_attn))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        module.training_step(batch(), 0)
        with pytest.raises(TypeError):
            module.training_step(batch()._replace(targets=None), 0)
    assert set(seen) == {not half}
    assert [m.fused_attn for m in layers] == [False, *[True] * (len(layers) - 1)]


def test_at_first_only_the_first_pass_trains(tiny, at_epoch):
    """Every weight has a gradient all the same: several processes wait for it."""
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=4)
    module, data = Classifier(model, Schedule(), num_classes=4, second_epoch=1), batch()
    at_epoch(0)
    loss = module.training_step(data, 0)
    logits = model.first_pass(data.images, data.coarse_images).logits
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, data.targets))
    loss.backward()
    unused = [model.second_pos_embed, *model.reuse.parameters()]
    assert all(not parameter.grad.any() for parameter in unused)
    assert all(parameter.grad is not None for parameter in model.parameters())
    at_epoch(1)
    module.training_step(data, 0).backward()
    assert all(parameter.grad.any() for parameter in unused)


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
def test_no_decay_but_on_matrices(composed, method, tmp_path):
    settings = [f"method={method}", "reducer=frequency", *NEEDLE_FAST, f"run_dir={tmp_path}"]
    module = build_module(composed("train", *settings), ["a", "b"])
    groups = build_optimizer(module.model, module.optimizer).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(module.model.parameters()))
    for name, parameter in module.model.named_parameters():
        free = parameter.ndim == 1 or name.endswith(("pos_embed", "cls_token", "w1", "w2"))
        assert (id(parameter) in decayed) == (not free), name


def weights(run: Path, key="state_dict"):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint[key]


def test_checkpoints_hold_averaged_weights_of_the_model_once(trained_run):
    averaged, current = weights(trained_run), weights(trained_run, "current_model_state")
    model, _ = load_trained(trained_run / "checkpoints" / "last.ckpt")
    assert set(averaged) == {f"model.{key}" for key in model.state_dict()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, averaged[f"model.{key}"])
    assert any(not torch.equal(averaged[key], current[key]) for key in averaged)


def test_seed_zero_is_a_seed(composed, tmp_path):
    settings = [*NEEDLE_FAST, "data.train_images=16", "trainer.max_epochs=1", "seed=0"]
    for name in "ab":
        train(composed("train", *settings, f"run_dir={tmp_path / name}"))
    first, second = (weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.alpha=0.5", r"other settings \(method.alpha=0.88 there, 0.5 here\)"),
        ("image_size=80", "image_size=112 there, 80 here"),
        ("callbacks.ema=null", "ema"),
        ("seed=5", "seed=0 there, 5 here"),
        ("data.num_classes=3", "was trained on other classes"),
    ],
)
def test_resuming_with_another_model_is_refused(composed, trained_run, tmp_path, override, message):
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    cfg = composed(
        "train", *NEEDLE_FAST, override, f"ckpt_path={checkpoint}", f"run_dir={tmp_path}"
    )
    with pytest.raises(CheckpointError, match=message):
        train(cfg)


def test_a_repeated_command_may_say_what_the_run_started_from(composed, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"init_from": "start.pth"}), run / "config.yaml")
    last = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    command = ("train", *NEEDLE_FAST, last, f"run_dir={run}")
    for start in ("start.pth", "moved/start.pth"):
        assert check_resume(composed(*command, f"init_from={start}")).step == 8
    with pytest.raises(ConfigError, match="did not start from it; pass one of them"):
        check_resume(composed(*command, "init_from=other.pth"))


def test_starting_from_weights_is_not_resuming(composed, trained_run, tmp_path):
    weights_only = tmp_path / "weights.pth"
    torch.save(weights(trained_run), weights_only)
    cfg = composed("train", *NEEDLE_FAST, f"ckpt_path={weights_only}", f"run_dir={tmp_path / 'a'}")
    with pytest.raises(CheckpointError, match="pass init_from= instead of ckpt_path="):
        train(cfg)
    cfg = composed(
        "train",
        *NEEDLE_FAST,
        "trainer.max_epochs=1",
        "data.num_classes=3",
        f"init_from={weights_only}",
        f"run_dir={tmp_path / 'b'}",
    )
    assert train(cfg)["epochs"] == 1


def test_weights_that_break_in_the_last_step_are_not_saved(composed, tmp_path, monkeypatch):
    """Finite gradients can take a weight out of range, after the last loss of an epoch."""
    before = []

    def too_far(self, batch, batch_idx):
        if self.current_epoch == 1 and self.trainer.is_last_batch:
            before.append((tmp_path / "checkpoints" / "last.ckpt").read_bytes())
            for group in self.optimizers().param_groups:
                group["lr"], group["weight_decay"] = 1e30, 1e30

    monkeypatch.setattr(Classifier, "on_train_batch_start", too_far)
    with pytest.raises(TrainingError, match="is not finite in epoch 1"):
        train(composed("train", *NEEDLE_FAST, f"run_dir={tmp_path}"))
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before[0]


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
def test_the_teacher_is_the_model_without_its_reducer(tiny, at_epoch, method):
    options = {"backbone": tiny, "image_size": 112, "num_classes": 4}
    model = lfvit.create_model(method, reducer={"name": "evit", "keep_rate": 0.3}, **options)
    teacher = unreduced(model)
    losses = []
    for weight in (0.0, 2.0):
        schedule = Schedule(distill_weight=weight)
        module = Classifier(model, schedule, num_classes=4, teacher=teacher if weight else None)
        at_epoch(3)
        losses.append(module.training_step(batch(torch.ones(2, 3, 112, 112)), 0))
    data = batch(torch.ones(2, 3, 112, 112))
    with torch.no_grad():
        taught, wanted = model(data.images), teacher(data.images)
    taught = [taught] if method == "vit" else taught.logits
    wanted = wanted if method == "vit" else wanted.second_logits
    assert not torch.allclose(taught[-1], wanted)
    expected = 2 * sum(kl_divergence(one, wanted) for one in taught)
    torch.testing.assert_close(losses[1] - losses[0], expected)
    losses[1].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in module.state_dict())
    assert lfvit.count_macs(teacher) > lfvit.count_macs(model)


def test_a_teacher_from_a_file_teaches_both_passes(tiny, at_epoch):
    options = {"backbone": tiny, "image_size": 112, "num_classes": 4}
    model, teacher = (lfvit.create_model(name, **options) for name in ("lf_vit", "vit"))
    data, checkpoint = batch(), {}
    at_epoch(0)
    plain = Classifier(model, Schedule(), num_classes=4).training_step(data, 0)
    schedule = Schedule(distill_weight=0.5, teacher="teacher.ckpt")
    module = Classifier(model, schedule, num_classes=4, teacher=teacher)
    loss, wanted = module.training_step(data, 0), teacher(data.images)
    divergences = [
        kl_divergence(one, wanted) for one in model(data.images, data.coarse_images).logits
    ]
    torch.testing.assert_close(loss - plain, 0.5 * sum(divergences))
    module.on_save_checkpoint(checkpoint)
    assert "teacher" not in checkpoint  # it has a file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["image_size=96", "schedule.distill_weight=1"], "trained with image_size=112, and the"),
        (["schedule.distill_weight=1"], "knows other classes .* they differ in their order"),
        (["schedule.distill_weight=1", "data.std=[1,1,1]"], "pass data.std as there"),
        ([], "teaches with schedule.distill_weight, which is 0"),
        (
            ["schedule.distill_weight=1", "reducer=dynamic_vit", "method=vit"],
            "teaches by logits alone",
        ),
    ],
)
def test_teachers_that_cannot_teach(composed, trained_vit, settings, message):
    cfg = composed("train", *NEEDLE_FAST, f"schedule.teacher={trained_vit}", *settings)
    classes = load_trained(trained_vit).record.classes
    with pytest.raises(ConfigError, match=message):
        build_module(cfg, classes[::-1] if "other classes" in message else classes)


def test_a_model_is_distilled_from_another(composed, trained_vit, tmp_path):
    settings = [*NEEDLE_FAST, f"schedule.teacher={trained_vit}", "schedule.distill_weight=1"]
    settings += ["trainer.max_epochs=1", "threshold=0.25", f"run_dir={tmp_path}"]
    metrics = train(composed("train", *settings))
    assert metrics["train/distill_loss"] > 0
    record = load_trained(tmp_path / "checkpoints" / "last.ckpt").record
    assert (record.threshold, record.calibrated_on) == (0.25, None)


def test_the_threshold_is_calibrated_and_kept(composed, tmp_path, trained_run, monkeypatch):
    """On images of the training's own validation."""
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    record = load_trained(checkpoint).record
    metrics = read_json(trained_run / "metrics.json")
    assert record.threshold == pytest.approx(metrics["val/threshold"])
    assert record.calibrated_on == 16
    assert metrics["val/early_exit_top1"] >= metrics["val/top1"] - 0.5
    assert f"threshold {record.threshold:g}, calibrated on 16" in record.about_threshold
    record = load_trained(checkpoint, {"threshold": 0.6}).record
    assert (record.threshold, record.calibrated_on) == (0.6, None)
    seen = []  # Lightning's trial of two batches chooses none
    monkeypatch.setattr(Classifier, "on_train_start", lambda self: seen.append(self.calibrated_on))
    train(composed("train", *NEEDLE_FAST, "trainer.max_epochs=1", f"run_dir={tmp_path}"))
    assert seen == [None]


def test_averaging_warms_up():
    """The weights a training starts from are soon forgotten."""
    callback, model = EMA(decay=0.5, warmup=True), torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, **callback._kwargs)
    expected = None
    for t in range(20):
        torch.nn.init.constant_(model.weight, t)
        averaged.update_parameters(model)
        keep = min(0.5, (1 + t) / (10 + t))
        expected = t if expected is None else keep * expected + (1 - keep) * t
        assert averaged.module.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("steps", [5, 500])
def test_averaged_weights_keep_a_share_of_the_start(steps):
    """Whatever the number of steps: here it is 0 at first, and 1 from the second step on."""
    callback, model = EMA(keep_start=0.25, warmup=True), torch.nn.Linear(1, 1, bias=False)
    callback._average_model = AveragedModel(model, **callback._kwargs)
    for step in range(steps):
        torch.nn.init.constant_(model.weight, min(step, 1))
        trainer = SimpleNamespace(
            estimated_stepping_batches=steps, global_step=step + 1, callbacks=[]
        )
        callback.on_train_batch_end(trainer, model, None, None, step)
    kept = 1 - callback._average_model.module.weight.item()
    assert kept == pytest.approx(0.25 ** ((steps - 1) / steps), rel=1e-3)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_that_is_none(share):
    with pytest.raises(ConfigError, match=f"keep_start={share} .*above 0 and below 1"):
        EMA(keep_start=share)


def test_the_teacher_has_the_type_of_the_model(composed, tmp_path):
    settings = [*NEEDLE_FAST, "trainer.max_epochs=1"]
    start = tmp_path / "start.pth"
    torch.save(build_model(composed("train", *settings), 6).state_dict(), start)
    settings += ["trainer.precision=bf16-true", "schedule.distill_weight=1", f"init_from={start}"]
    assert train(composed("train", *settings, f"run_dir={tmp_path}"))["epochs"] == 1

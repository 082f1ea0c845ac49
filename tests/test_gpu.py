"""What a GPU may do differently: every method there against the same method on a CPU.

Skipped without CUDA. ``GPU_TESTS=cpu`` runs them on the CPU, to try the tests themselves.
"""

import copy
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import lfvit
from conftest import NEEDLE_FAST, TINY
from interruptions import differences, signal_at
from lfvit.commands.benchmark import benchmark
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.models.passes import early_exit, forward_passes
from lfvit.models.reducers import REDUCERS
from lfvit.training.losses import pass_losses
from lfvit.utils.atomic_io import read_json
from lfvit.utils.signals import Stopped

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms ask for it
DEVICE = os.environ.get("GPU_TESTS", "cuda")
ACCELERATOR = "trainer.accelerator=" + ("gpu" if DEVICE == "cuda" else "cpu")
FAST = [*(o for o in NEEDLE_FAST if not o.startswith("trainer.accelerator")), ACCELERATOR]
METHODS = [("lf_vit", name) for name in ("none", "tome", "frequency", "dpc_knn")]
METHODS += [("cf_vit", "none"), ("dvt", "none")]
METHODS += [("vit", name) for name in ("none", *sorted(REDUCERS))]
SEVERAL_PASSES = [method for method in METHODS if method[0] != "vit"]
TWO_PASSES = [method for method in SEVERAL_PASSES if method[0] != "dvt"]
OPTIONS = {"tome": {"r": 0.1}, "tofu": {"r": 0.1}}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
]
every_method = pytest.mark.parametrize(("method", "reducer"), METHODS)
two_passes = pytest.mark.parametrize(("method", "reducer"), TWO_PASSES)


def build(method: str, reducer: str, batch: int = 8):
    """A small model in eval mode, and images, both on the CPU."""
    torch.manual_seed(0)
    model = lfvit.create_model(
        method,
        backbone=dict(TINY),
        image_size=112,
        num_classes=7,
        reducer={"name": reducer, **OPTIONS.get(reducer, {})},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # so that attention prefers something, but rounding little
    return model.eval(), torch.randn(batch, 3, 112, 112)


def gradients(model, images):
    targets = torch.arange(len(images), device=images.device) % 7
    model.zero_grad()
    torch.stack(pass_losses(forward_passes(model, images).logits, targets)).sum().backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@every_method
def test_forward_and_backward_in_float32(method, reducer):
    model, images = build(method, reducer)
    other = copy.deepcopy(model).to(DEVICE)
    with torch.no_grad():
        expected = forward_passes(model, images)
        found = forward_passes(other, images.to(DEVICE))
    for a, b in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=2e-3, rtol=2e-3)
    if expected.selection is not None:
        assert torch.equal(found.selection.fine_indices.cpu(), expected.selection.fine_indices)
    for (name, a), b in zip(
        gradients(other, images.to(DEVICE)).items(), gradients(model, images).values(), strict=True
    ):
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-5, name


@every_method
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_stays_close(method, reducer, autocast):
    """Other tokens may be chosen, so that only most images agree."""
    model, images = build(method, reducer, batch=16)
    with torch.no_grad():
        expected = forward_passes(model, images).logits[-1]
    model, images = model.to(DEVICE), images.to(DEVICE)
    with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=autocast):
        if autocast:
            assert all(g.isfinite().all() for g in gradients(model, images).values())
        else:
            model, images = model.bfloat16(), images.bfloat16()
        with torch.no_grad():
            found = forward_passes(model, images).logits[-1].float().cpu()
    near = (found - expected).abs().amax(1) < 0.15 * expected.abs().max() + 0.05  # (B,)
    assert near.float().mean() >= (
        0.3 if reducer == "dynamic_vit" else 0.75
    )  # it learns what to keep


@every_method
def test_channels_last(method, reducer):
    model, images = build(method, reducer)
    model, images = model.to(DEVICE), images.to(DEVICE)
    with torch.no_grad():
        expected = forward_passes(model, images).logits[-1]
        model.to(memory_format=torch.channels_last)
        found = forward_passes(model, images.to(memory_format=torch.channels_last)).logits[-1]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@two_passes
def test_early_exit_with_none_one_and_all_left(method, reducer):
    model, images = build(method, reducer)
    model, images = model.to(DEVICE), images.to(DEVICE)
    with torch.no_grad():
        out = model(images)
    confidence = out.first_logits.softmax(1).amax(1).sort().values
    for threshold, left in ((0.0, 0), (confidence[:2].mean().item(), 1), (1.01, len(images))):
        found = early_exit(model, images, threshold)
        assert (~found.exited).sum().item() == left
        expected = torch.where(found.exited[:, None], out.first_logits, out.second_logits)
        torch.testing.assert_close(found.logits, expected, atol=1e-3, rtol=1e-3)


@every_method
def test_deterministic_algorithms_exist(method, reducer):
    model, images = build(method, reducer)
    model, images = model.to(DEVICE), images.to(DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(model, images), gradients(model, images)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_method
def test_no_pass_waits_for_the_device(method, reducer):
    if DEVICE == "cpu":
        pytest.skip("a CPU does not wait; tests/models/test_two_pass.py looks for what would")
    model, images = build(method, reducer)
    model, images = model.train().to(DEVICE), images.to(DEVICE)
    forward_passes(model, images)  # the first call may wait, to set up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_passes(model, images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("method", "reducer"), SEVERAL_PASSES)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_passes_compile_once(method, reducer, mode):
    """After a warm-up with every size of bucket, no batch compiles anything or changes results."""
    model, images = build(method, reducer)
    model, images = model.to(DEVICE), images.to(DEVICE)
    confidence = early_exit(model, images, 0.0).confidence.sort().values
    thresholds = [0.0, *((confidence[1:] + confidence[:-1]) / 2).tolist(), 1.01]
    run = partial(early_exit, model, images, bucket=4)
    expected = [run(threshold).logits for threshold in thresholds]
    model.compile_passes(mode=mode)
    for threshold in [0.0, thresholds[2], 1.01] * 3:  # the second pass on 0, 4 and 8 images
        run(threshold)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = [run(threshold).logits for threshold in thresholds]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("method", "reducer"), [("vit", "none"), ("vit", "evit"), TWO_PASSES[0]])
def test_compiled_training_has_the_same_gradients(method, reducer):
    model, images = build(method, reducer)
    model, images = model.to(DEVICE), images.to(DEVICE)
    expected = gradients(model, images)
    model.compile()
    for name, gradient in gradients(model, images).items():
        assert (gradient - expected[name]).norm() <= 0.02 * expected[name].norm() + 1e-5, name


@pytest.mark.parametrize("method", ["vit", "lf_vit", "cf_vit"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_training_and_its_evaluation(tmp_path, composed, method, precision):
    if (DEVICE, precision) == ("cpu", "16-mixed"):
        pytest.skip("a CPU has no loss scaling")
    settings = [f"method={method}", f"trainer.precision={precision}", f"run_dir={tmp_path}"]
    metrics = train(composed("train", *FAST, *settings))
    assert metrics["train/loss"] < 10  # false for NaN as well
    last = tmp_path / "checkpoints" / "last.ckpt"
    passes = []
    for name, accelerator in (("here", ACCELERATOR), ("there", "trainer.accelerator=cpu")):
        out = tmp_path / name
        evaluate(composed("evaluate", f"ckpt_path={last}", accelerator, f"run_dir={out}"))
        passes.append(read_json(out / "evaluate.json")["passes"])
    for here, there in zip(*passes, strict=True):
        assert here["top1"] == pytest.approx(there["top1"], abs=100 / 16 + 0.01)  # one image
        assert here["gmacs"] == there["gmacs"]


def test_the_device_cache_and_compilation(tmp_path, composed, photographs):
    fast = [o for o in FAST if not o.startswith("data.")]
    data = ["data=imagefolder", f"data.root={photographs}", "data.cache=device", "augment=device"]
    sizes = ["data.batch_size=4", "data.num_workers=0", "compile=true"]
    metrics = train(composed("train", *fast, *data, *sizes, f"run_dir={tmp_path}"))
    assert metrics["train/loss"] < 10


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, composed):
    fixed = [*FAST, "deterministic=true"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(composed("train", *fixed, f"run_dir={whole}"))
    stop = signal_at(signal.SIGTERM, 5, tmp_path / "stopped")
    with pytest.raises(Stopped):
        train(composed("train", *fixed, *stop, f"run_dir={halves}"))
    last = halves / "checkpoints" / "last.ckpt"
    train(composed("train", *fixed, *stop, f"run_dir={halves}", f"ckpt_path={last}"))
    assert differences(whole, halves) == []


def _learn(rank: int, address: str, folder: Path) -> None:
    """One of two processes: gradients of half a batch, averaged by DDP."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model, images = build("lf_vit", "none")
    parallel = DistributedDataParallel(model.to(DEVICE))
    out = parallel(images[4 * rank :][:4].to(DEVICE))
    targets = (torch.arange(8, device=DEVICE) % 7)[4 * rank :][:4]
    torch.stack(pass_losses(out.logits, targets)).sum().backward()
    if rank == 0:
        found = {name: p.grad.cpu() for name, p in model.named_parameters()}
        torch.save(found, folder / "gradients.pth")
    dist.destroy_process_group()


def test_two_processes_on_one_device(tmp_path):
    model, images = build("lf_vit", "none")
    expected = gradients(model.to(DEVICE), images.to(DEVICE))
    context = torch.multiprocessing.spawn(
        _learn, (f"file://{tmp_path / 'store'}", tmp_path), nprocs=2, join=False
    )
    while not context.join(timeout=60):
        pass
    found = torch.load(tmp_path / "gradients.pth", weights_only=True)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-5, name


def test_benchmark(tmp_path, composed):
    rows = benchmark(
        composed(
            "benchmark",
            "backbone=vit_micro",
            "image_size=112",
            "batch_sizes=[4]",
            "precision=bf16",
            "training=true",
            "repeats=2",
            f"accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}",
            f"run_dir={tmp_path}",
        )
    )
    assert {row["task"] for row in rows} == {"inference", "training"}
    assert all(row["images_per_second"] > 0 for row in rows)
    assert all((row["peak_memory_mb"] is not None) == (DEVICE == "cuda") for row in rows)

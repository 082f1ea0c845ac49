"""The two-pass model: exact to the released code and to a slow reference, early exit, compile."""

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import golden_vectors
import lfvit
import reference
from lfvit.models.tokens import downsample
from small_vits import randomise


def lf_vit(tiny, image_size=112, **options):
    torch.manual_seed(0)
    model = lfvit.create_model(
        "lf_vit", backbone=tiny, image_size=image_size, num_classes=7, **options
    )
    return model.eval()


@pytest.mark.parametrize("name", ["lf224_m5", "cf224", "cf_lv224"])
def test_matches_the_released_implementation(name):
    golden = golden_vectors.load(name)
    model = lfvit.create_model(
        golden["method"],
        backbone={
            "family": golden.get("backbone_family", "vit"),
            "embed_dim": 48,
            "depth": 6,
            "num_heads": 3,
        },
        image_size=224,
        num_classes=10,
        region_size=golden.get("region_size"),
    ).eval()
    assert (model.alpha, model.beta) == (golden["alpha"], golden["beta"])
    lfvit.load_checkpoint(
        model, golden_vectors.weights(golden["parameter_order"], golden["weight_seed"])
    )
    with torch.no_grad():
        out = model(golden_vectors.images(golden["batch"], 224, golden["input_seed"]))
    for found, expected in (
        (out.first_logits, golden["first_stage_logits"]),
        (out.second_logits, golden["second_stage_logits"]),
    ):
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    assert out.selection.fine_indices.tolist() == golden["selected_fine_indices"]
    if name.startswith("lf"):
        gca = torch.tensor(golden["gca"])
        torch.testing.assert_close(out.selection.gca.flatten(1), gca, atol=1e-7, rtol=1e-4)
        assert out.selection.region.tolist() == golden["region_top_left"]
    else:
        assert out.selection.region is None


@pytest.mark.parametrize(
    ("side", "m", "alpha", "beta", "options"),
    [
        (224, 3, 0.5, 0.0, {}),
        (224, 4, 0.7, 0.5, {}),
        (224, 6, 1.0, 0.9, {}),
        (224, 7, 0.92, 0.99, {}),
        (288, 8, 0.88, 0.99, {}),
        (288, 3, 1.0, 0.0, {}),
        (160, 2, 0.6, 0.99, {"gca_start": 0}),
        (224, 5, 0.88, 0.99, {"reuse": "none"}),
        (224, 5, 0.88, 0.99, {"background": False}),
        (224, 1, 1.0, 0.99, {"gca_start": 4, "background": False, "reuse": "none"}),
        (224, 5, 0.88, 0.99, {"reuse": "with_class_token"}),
        (224, 5, 0.5, 0.99, {"reuse": "with_uninformative", "selector": "gca"}),
        (224, 5, 0.88, 0.99, {"reuse": "everywhere"}),
        (288, 5, 0.5, 0.99, {"selector": "gca"}),
        (224, 5, 0.3, 0.9, {"selector": "negative_gca"}),
        (160, 1, 1.0, 0.9, {"selector": "last_class_attention", "background": False}),
    ],
)
def test_matches_a_slow_reference(side, m, alpha, beta, options):
    shapes = golden_vectors.released_shapes(D=32, depth=5, classes=6, grid=side // 32)
    weights = golden_vectors.weights(shapes, seed=m)
    images = golden_vectors.images(2, side, seed=side)
    model = lfvit.create_model(
        "lf_vit",
        backbone={"embed_dim": 32, "depth": 5, "num_heads": 2},
        image_size=side,
        num_classes=6,
        region_size=m,
        alpha=alpha,
        beta=beta,
        **options,
    ).eval()
    lfvit.load_checkpoint(model, weights)
    with torch.no_grad():
        out = model(images)
    for i, image in enumerate(images):
        slow = reference.two_pass(
            image,
            weights,
            patch_size=16,
            heads=2,
            region_size=m,
            alpha=alpha,
            beta=beta,
            **options,
        )
        if slow["region"] is not None:
            assert out.selection.region[i].tolist() == slow["region"]
        assert out.selection.fine_indices[i].tolist() == slow["fine_indices"]
        for fast, name in (
            (out.first_logits, "first_logits"),
            (out.second_logits, "second_logits"),
        ):
            torch.testing.assert_close(fast[i].double(), slow[name], atol=1e-4, rtol=0)


def test_an_empty_batch_is_answered_with_nothing(tiny):
    model = lf_vit(tiny)
    assert model(torch.zeros(0, 3, 112, 112)).second_logits.shape == (0, 7)
    assert model.infer(torch.zeros(0, 3, 112, 112), 0.5).logits.shape == (0, 7)


def test_the_selector_can_be_replaced_for_a_call(tiny):
    model = lf_vit(tiny)
    images = torch.randn(2, 3, 112, 112)
    whole = lf_vit(tiny, selector="none")
    whole.load_state_dict(model.state_dict())
    out = model(images, selector="none")
    assert out.selection.fine_indices.tolist() == [list(range(196))] * 2
    torch.testing.assert_close(out.second_logits, whole(images).second_logits)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("deit_tiny_patch16_224", 96),
        ("vit_small_patch16_224.dino", 64),
        ("deit3_small_patch16_224", 64),  # layer scale, no position for the class token
        ("vit_xsmall_patch16_clip_224", 64),  # a norm before the blocks
        ("vit_small_patch14_reg4_dinov2", 56),  # registers
    ],
)
def test_both_passes_of_timms_vits_are_timms_own_forward(name, side):
    """With their weights carried over: the view alone, and the whole image without any extras."""
    torch.manual_seed(0)
    vits = [timm.create_model(name, img_size=s, num_classes=3).eval() for s in (side // 2, side)]
    lfvit.load_checkpoint(vits[0], {**vits[1].state_dict()})
    model = lfvit.create_model(
        "lf_vit",
        backbone=name,
        image_size=side,
        num_classes=3,
        selector="none",
        reuse="none",
        background=False,
    ).eval()
    lfvit.load_checkpoint(model, vits[1].state_dict())
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        found = model(images)
        expected = vits[0](downsample(images)), vits[1](images)
    torch.testing.assert_close(found.first_logits, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.second_logits, expected[1], atol=1e-5, rtol=1e-4)


def test_reducers_work_behind_layer_scale_and_registers():
    images = torch.randn(2, 3, 56, 56)
    options = {"backbone": "vit_small_patch14_reg4_dinov2", "image_size": 56, "num_classes": 3}
    torch.manual_seed(0)
    plain = lfvit.create_model("cf_vit", **options).eval()
    with torch.no_grad():  # layer scale starts so small that blocks would hardly matter
        for name, parameter in plain.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    for reducer, nothing in (("evit", {"keep_rate": 1}), ("tome", {"r": 0}), ("evit", {})):
        model = lfvit.create_model("cf_vit", reducer={"name": reducer, **nothing}, **options).eval()
        lfvit.load_checkpoint(model, plain.state_dict())
        with torch.no_grad():
            same = torch.allclose(model(images).second_logits, plain(images).second_logits)
        assert same == bool(nothing)


def test_gradients_do_not_depend_on_the_order_in_which_threads_finish(tiny):
    """Summing the gradient of a position looked up twice in any order would make runs differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (_gradients(tiny) for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def _gradients(tiny):
    model = lf_vit(tiny).train()
    out = model(torch.randn(32, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    (out.first_logits.square().sum() + out.second_logits.square().sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", ["lf_vit", "dvt"])
def test_answers_survive_graphs_that_write_into_the_same_memory(tiny, monkeypatch, method):
    """As CUDA graphs do; each pass has its own memory, written again by its next run."""
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=7).eval()
    randomise(model, seed=0)
    torch.manual_seed(0)
    batches = torch.randn(2, 4, 3, 112, 112)
    median = model.infer(batches.flatten(0, 1), 0.0).confidence.median().item()
    cases = [(batch, threshold) for batch in batches for threshold in (0.0, median)]
    expected = [model.infer(*case) for case in cases]

    def graphed(function, **options):
        memory: dict = {}

        def run(*args):
            found = function(*args)
            shapes = tuple(part.shape for part in found if part is not None)
            places = memory.setdefault(shapes, found)
            for place, part in zip(places, found, strict=True):
                if part is not None:
                    place.copy_(part)
            return places

        return run

    monkeypatch.setattr(torch, "compile", graphed)
    model.compile_passes(mode="reduce-overhead")
    found = [model.infer(*case) for case in cases]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logits, other.logits)
        torch.testing.assert_close(one.selection, other.selection)


@pytest.mark.parametrize("method", ["lf_vit", "cf_vit"])
def test_both_passes_are_launched_without_waiting_for_a_gpu(tiny, method):
    """Nothing in them moves a number between host and device; early exit asks once who is left."""
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=7).eval()
    images = torch.randn(2, 3, 112, 112)
    waits: list[str] = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            if name in ("lift_fresh", "_local_scalar_dense", "nonzero"):
                waits.append(name)
            return function(*args, **(kwargs or {}))

    with Waits():
        model(images)
    assert waits == []
    with Waits():
        model.infer(images, 0.5)
    assert waits == ["nonzero"]

"""Every method on every backbone with every reducer: what all of them have to be able to do.

A new method, backbone family, reducer or selector is picked up here by itself.
"""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import lfvit
from lfvit.errors import ConfigError
from lfvit.measure.costs import is_adaptive, macs_by_image
from lfvit.models.reducers import REDUCERS
from lfvit.models.settings import METHODS

SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8}
BACKBONES = {"vit": SIZES, "lv_vit": {**SIZES, "family": "lv_vit", "stem_dim": 8}}
SIDE = 64


def composes(reducer, method, backbone):
    """What drops patches needs heads that read none; a loss of its own is for one pass."""
    if method == "dvt" or reducer == "none":
        return reducer == "none" and (method, backbone) != ("dvt", "lv_vit")
    cls = REDUCERS[reducer]
    return not (cls.drops and backbone == "lv_vit") and not (cls.learned and method != "vit")


CASES = [
    (method, backbone, reducer)
    for method in METHODS
    for backbone in BACKBONES
    for reducer in ("none", *REDUCERS)
    if composes(reducer, method, backbone)
    and (reducer == "none" or (method, backbone) != ("lf_vit", "lv_vit"))  # as in CF-ViT
]
NAMES = ("method", "backbone", "reducer")
every_case = pytest.mark.parametrize(NAMES, CASES)
# a reducer compiles to the same in both passes, and whatever the backbone and the selector
EVERY_GRAPH = [case for case in CASES if case[2] == "none" or case[:2] == ("vit", "vit")]
EVERY_GRAPH += [("lf_vit", "vit", "tome")]


def build(method, backbone, reducer, **options):
    torch.manual_seed(0)
    settings = reducer if isinstance(reducer, dict) else {"name": reducer}
    if method in ("lf_vit", "cf_vit"):
        options = {"gca_start": 1, **options}
    if settings["name"] in ("tome", "tofu"):
        settings["r"] = 0.1
    if settings["name"] == "a_vit":  # some tokens of random weights halt
        settings |= {"gate_scale": 5.0, "gate_center": 1.0}
    if method != "vit" and settings is not reducer and reducer != "none":
        settings["passes"] = "second" if REDUCERS[reducer].drops else "both"
    model = lfvit.create_model(
        method,
        backbone=BACKBONES[backbone],
        image_size=SIDE,
        num_classes=7,
        reducer=settings,
        **options,
    )
    return model.eval(), torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def logits(model, images):
    """The model's last word, both passes for a two-pass model: (B, C)."""
    out = model(images)
    return out if isinstance(out, torch.Tensor) else out.logits[-1]


@every_case
def test_every_weight_learns_in_every_phase(method, backbone, reducer):
    """What DDP needs: it waits for the gradient of every weight that is not frozen."""
    model, images = build(method, backbone, reducer)
    model.train()
    targets = torch.tensor([0, 3, 6])
    for phase in [{}] if method == "vit" else [{"selector": "none"}, {}]:
        model.zero_grad()
        out = model(images, **phase)
        passes = [out] if method == "vit" else out.logits
        torch.stack([cross_entropy(logits, targets) for logits in passes]).sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in model.parameters())


@every_case
def test_bfloat16_and_autocast_stay_close(method, backbone, reducer):
    model, images = build(method, backbone, reducer)
    with torch.no_grad():
        exact = logits(model, images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = logits(model, images)
        halved = logits(copy.deepcopy(model).bfloat16(), images.bfloat16())
    for found in (mixed, halved):  # other tokens may be chosen, so that only closeness is sure
        assert (found.float() - exact).abs().max() < 0.15 * exact.abs().max() + 0.05


@pytest.mark.parametrize(NAMES, EVERY_GRAPH)
def test_a_compiled_model_says_the_same(method, backbone, reducer):
    model, images = build(method, backbone, reducer)
    with torch.no_grad():
        expected = logits(model, images)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(logits(compiled, images), expected, atol=1e-5, rtol=1e-4)


@every_case
def test_macs_are_those_of_the_operations(method, backbone, reducer):
    """PyTorch's own counter sees matrix products and convolutions; norms are added by hooks."""
    model, images = build(method, backbone, reducer)
    per_element = {torch.nn.LayerNorm: 5, torch.nn.BatchNorm2d: 2}
    norms = []
    for module in model.modules():
        if isinstance(module, tuple(per_element)):
            cost = next(cost for kind, cost in per_element.items() if isinstance(module, kind))
            module.register_forward_hook(
                lambda _, __, out, cost=cost: norms.append(cost * out.numel())
            )
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images[:1])
    expected = counter.get_total_flops() / 2 + sum(norms)  # before counting calls the hooks again
    if is_adaptive(model):
        assert macs_by_image(model, images[:1]).sum().item() == expected
    else:
        assert lfvit.count_macs(model) == expected


@every_case
def test_weights_survive_a_file(method, backbone, reducer, tmp_path):
    model, images = build(method, backbone, reducer)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    other, _ = build(method, backbone, reducer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    lfvit.load_checkpoint(other, tmp_path / "weights.pth")
    with torch.no_grad():
        assert torch.equal(logits(other, images), logits(model, images))


@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducers_that_drop_patches_are_refused_where_every_patch_is_read(reducer):
    cls = REDUCERS[reducer]
    refused = [(m, b) for m in ("vit", "lf_vit") for b in BACKBONES if not composes(reducer, m, b)]
    for method, backbone in refused:
        with pytest.raises(ConfigError, match="works with method=vit|a head that reads patch"):
            build(method, backbone, reducer)
    if cls.drops and not cls.learned:
        for passes in ("first", "both"):
            with pytest.raises(ConfigError, match="on a ViT with reducer.passes=second"):
                build("lf_vit", "vit", {"name": reducer, "passes": passes})
    if not cls.learned:
        model, _ = build("lf_vit", "vit", reducer)
        assert lfvit.count_macs(model) < lfvit.count_macs(build("lf_vit", "vit", "none")[0])

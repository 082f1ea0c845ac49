"""The published figures, and the closed formula against fvcore."""

import pytest
import timm
import torch
import yaml
from timm.layers import Attention

import lfvit
from conftest import ROOT
from lfvit.errors import ConfigError
from lfvit.measure.costs import expected_gmacs, mac_parts, trace_macs


def gmacs(method, image_size, stage=None, **options):
    model = lfvit.create_model(
        method, backbone="deit_small_patch16_224", image_size=image_size, **options
    )
    return lfvit.count_macs(model, stage) / 1e9


@pytest.mark.parametrize(
    ("side", "expected"), [(224, 4.608), (112, 1.102), (288, 7.986), (144, 1.831)]
)
def test_deit_small(side, expected):
    assert gmacs("vit", side) == pytest.approx(expected, abs=5e-4)


def test_lf_vit_is_the_published_figure_less_the_patches_it_does_not_embed():
    spared = (196 - 88) * 768 * 384 / 1e9
    assert gmacs("lf_vit", 224, region_size=5) + spared == pytest.approx(3.81, abs=0.005)
    assert gmacs("lf_vit", 224, "first") == pytest.approx(1.102, abs=5e-4)


@pytest.mark.parametrize(("side", "expected"), [(224, 4.02), (288, 6.77)])
def test_cf_vit_is_the_published_figure_less_the_patches_it_does_not_embed(side, expected):
    grid = side // 32
    spared = 4 * (grid**2 - -(-(grid**2) // 2)) * 768 * 384 / 1e9
    assert gmacs("cf_vit", side) + spared == pytest.approx(expected, abs=0.01)


def reduced_gmacs(size, reducer):
    backbone = f"deit_{size}_patch16_224"
    return lfvit.count_macs(lfvit.create_model("vit", backbone=backbone, reducer=reducer)) / 1e9


@pytest.mark.parametrize(
    ("size", "reducer", "published"),
    [
        ("small", {"name": "evit", "keep_rate": 0.9}, 4.0),
        ("small", {"name": "evit", "keep_rate": 0.8}, 3.5),
        ("small", {"name": "evit", "keep_rate": 0.7}, 3.0),
        ("small", {"name": "evit", "keep_rate": 0.6}, 2.6),
        ("small", {"name": "evit", "keep_rate": 0.5}, 2.3),
        ("tiny", "evit", 0.8),
        ("base", "evit", 11.6),
        ("small", {"name": "tome", "r": 13}, 2.7),
        ("small", "dynamic_vit", 2.9),
        ("tiny", "frequency", 0.8),
        ("small", {"name": "frequency", "windows": [2, 2, 1]}, 3.0),
        ("base", "frequency", 11.6),
    ],
)
def test_token_reduction_costs_what_its_papers_print(size, reducer, published):
    assert reduced_gmacs(size, reducer) == pytest.approx(published, abs=0.09)


@pytest.mark.parametrize(
    ("option", "published", "ours"),
    [
        ("deit_tiny_o2", 0.6, 0.66),
        ("deit_small_o2", 1.5, 1.58),
        # three rows of Table 3 cost less by their own settings than what is printed beside them
        ("deit_tiny_o1", 1.0, 0.66),
        ("deit_small_o1", 2.6, 2.28),
        ("deit_base_o1", 8.7, 8.37),
    ],
)
def test_searched_settings_of_frequency_aware_reduction(option, published, ours):
    path = ROOT / "conf" / "reducer" / f"frequency_{option}.yaml"
    settings = yaml.safe_load(path.read_text())
    settings.pop("defaults")
    found = reduced_gmacs(option.split("_")[1], {"name": "frequency", **settings})
    assert found == pytest.approx(ours, abs=0.01)
    assert (abs(found - published) < 0.1) == option.endswith("o2")


def lv_gmacs(method, image_size, stage=None):
    model = lfvit.create_model(method, backbone="lv_vit_small", image_size=image_size)
    return lfvit.count_macs(model, stage) / 1e9


def test_lv_vit_small_and_cf_vit_on_it_are_the_published_figures():
    spared = (196 - 100) * 64 * 8 * 8 * 384 / 1e9  # patches that the second pass does not project
    assert lv_gmacs("vit", 224) == pytest.approx(6.6, abs=0.05)
    assert lv_gmacs("cf_vit", 224) + spared == pytest.approx(6.17, abs=0.02)


CASES = [
    ("vit", 112, {}),
    ("lf_vit", 112, {}),
    ("lf_vit", 144, {"region_size": 3, "alpha": 0.5}),
    ("lf_vit", 112, {"background": False, "reuse": "none", "gca_start": 0}),
    ("lf_vit", 112, {"selector": "none"}),
    ("lf_vit", 112, {"selector": "random"}),
    ("lf_vit", 112, {"reuse": "linear"}),
    ("cf_vit", 112, {"reuse": "with_class_token"}),
    ("cf_vit", 144, {"reuse": "with_uninformative"}),
    ("lf_vit", 112, {"reuse": "everywhere"}),
]


@pytest.mark.parametrize(("method", "side", "options"), CASES)
@pytest.mark.parametrize(
    "spec",
    [{}, {"mlp_ratio": 3, "qkv_bias": False}, {"family": "lv_vit"}],
    ids=["vit", "narrow", "lv_vit"],
)
def test_the_formula_and_fvcore_agree_exactly(tiny, method, side, options, spec):
    model = lfvit.create_model(
        method, backbone={**tiny, **spec}, image_size=side, num_classes=7, **options
    ).train()
    for stage in ("first", "second", None) if method != "vit" else (None,):
        assert lfvit.count_macs(model, stage) == trace_macs(model, side, stage)
    assert model.training
    assert all(m.fused_attn for m in model.modules() if isinstance(m, Attention))


def test_passes_add_up_and_early_exit_interpolates(tiny):
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112)
    first, second = lfvit.count_macs(model, "first"), lfvit.count_macs(model, "second")
    assert first + second == lfvit.count_macs(model)
    assert expected_gmacs(first, second, 1.0) == first / 1e9
    assert expected_gmacs(first, second, 0.25) == pytest.approx((first + 0.75 * second) / 1e9)


def test_parts_say_where_it_goes(tiny):
    options = {"backbone": tiny, "image_size": 112, "num_classes": 7}
    model = lfvit.create_model("lf_vit", reducer={"name": "evit", "passes": "second"}, **options)
    parts = mac_parts(model)
    assert sum(parts.values()) == lfvit.count_macs(model)
    assert list(mac_parts(model, "second")) == [k for k in parts if k.startswith("second ")]
    assert parts["second block 1"] > parts["second block 3"] > parts["second block 5"]
    assert parts["first block 4"] - parts["first block 3"] == 50 * 24  # its class row counts
    assert list(mac_parts(lfvit.create_model("vit", **options))) == [
        *("embed", "block 1", "block 2", "block 3", "block 4", "block 5", "head"),
    ]


def test_wrong_questions(tiny):
    vit = lfvit.create_model("vit", backbone=tiny, image_size=112)
    with pytest.raises(ConfigError, match="has one pass"):
        lfvit.count_macs(vit, "first")
    with pytest.raises(ConfigError, match="stage='third' is unknown"):
        lfvit.count_macs(vit, "third")
    with pytest.raises(ConfigError, match="cannot count this Linear"):
        lfvit.count_macs(vit.head)
    pooled = timm.create_model("vit_base_patch16_siglip_224", depth=1)
    with pytest.raises(ConfigError, match="attention pooling"):
        lfvit.count_macs(pooled)


def test_counting_draws_nothing(tiny):
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, selector="random")
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    lfvit.count_macs(model)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 2}),
        ("test_vit4", {}),  # norms of another kind
    ],
)
def test_timm_models_with_a_second_head_or_other_norms(name, sizes):
    vit = timm.create_model(name, img_size=96, num_classes=7, **sizes)
    assert lfvit.count_macs(vit) == trace_macs(vit, 96)

"""Settings that work and settings that are refused, by name."""

import pytest
import timm
import torch

import lfvit
from lfvit.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lf-vit"}, r"method='lf-vit' is unknown; valid: vit, lf_vit, cf_vit"),
        ({"region_size": 9}, r"region_size=9 does not fit the 7 x 7 grid of image_size=112"),
        ({"region_size": 0}, "region_size=0 must be a whole number"),
        ({"region_size": 2.5}, "region_size=2.5 must be a whole number"),
        ({"alpha": 0}, "alpha=0 is out of range; valid: a number above 0 up to 1"),
        ({"alpha": 1.1}, r"alpha=1.1 is out of range"),
        ({"alpha": "much"}, "alpha='much' is out of range"),
        ({"beta": 1.0}, "beta=1.0 is out of range"),
        ({"beta": -0.1}, "beta=-0.1 is out of range"),
        ({"gca_start": 5}, "gca_start=5 leaves no block to count"),
        ({"selector": "gnca"}, "selector='gnca' is unknown; valid: .*ngca"),
        ({"reuse": "maybe"}, "reuse='maybe' is unknown; valid: mlp, linear"),
        ({"background": "yes"}, "background='yes' must be true or false"),
        ({"alhpa": 0.5}, "method=lf_vit has no setting 'alhpa'; valid: region_size, alpha"),
        ({"image_size": 115}, "image_size=115 does not divide .* such as 112 or 120"),
        ({"image_size": 120}, "image_size=120 .*half resolution.* 112 or 128"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 is out of range"),
        ({"backbone": "deit_smal_patch16_224"}, "is no model of timm; try deit_small_patch16_224"),
        ({"backbone": "resnet18"}, "backbone='resnet18'"),
        ({"backbone": "deit_tiny_distilled_patch16_224"}, "a distillation token with a head"),
        ({"backbone": "vit_base_patch16_siglip_224"}, "attention pooling; no class token"),
        ({"backbone": {"embed_dim": 24, "depth": 2}}, "backbone.num_heads=None"),
        (
            {"backbone": {"embed_dim": 25, "depth": 2, "num_heads": 2}},
            "not a multiple of num_heads",
        ),
        ({"backbone": {"embed_dim": 24, "dept": 2, "num_heads": 2}}, "no setting 'dept'; valid:"),
        ({"backbone": {"family": "cnn"}}, "backbone.family='cnn' is unknown; valid: vit"),
        ({"pretrained": True}, "pretrained=true needs a backbone with a timm name"),
    ],
)
def test_wrong_settings_are_refused_by_name(tiny, settings, message):
    settings = {"backbone": tiny, "image_size": 112, **settings}
    with pytest.raises(ConfigError, match=message):
        lfvit.create_model(settings.pop("method", "lf_vit"), **settings)


def test_the_one_pass_model_is_timms_and_takes_no_options(tiny):
    model = lfvit.create_model("vit", backbone="deit_tiny_patch16_224", num_classes=4)
    assert type(model) is timm.models.VisionTransformer
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 4)
    with pytest.raises(ConfigError, match="method=vit has no setting 'alpha'"):
        lfvit.create_model("vit", backbone=tiny, image_size=112, alpha=0.5)


@pytest.mark.parametrize(("side", "m"), [(224, 5), (288, 8), (160, 3), (32, 1)])
def test_default_windows(side, m):
    backbone = {"embed_dim": 12, "depth": 4, "num_heads": 2}
    assert lfvit.create_model("lf_vit", backbone=backbone, image_size=side).region_size == m


def test_weights_that_cannot_be_fetched_are_one_clear_error(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match=r"could not be fetched \(no route to host\)"):
        lfvit.create_model("lf_vit", backbone="deit_tiny_patch16_224", pretrained=True)


def test_pretrained_positions_fill_both_grids(monkeypatch):
    created = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: created)
    model = lfvit.create_model("lf_vit", backbone="deit_tiny_patch16_224", pretrained=True)
    assert torch.equal(model.second_pos_embed, created.pos_embed)
    assert torch.equal(model.first_pos_embed[:, 0], created.pos_embed[:, 0])
    assert model.first_pos_embed.shape == (1, 50, 192)


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        ({"name": "none", "keep_rate": 0.5}, "reducer.keep_rate=0.5 is set, but there is no reduc"),
        ({"keep_rate": 0.5}, "there is no reducer; name one as well: dynamic_vit, evit"),
        ({"name": "evit", "passes": "third"}, "reducer.passes='third' is unknown"),
        ("evti", "reducer.name='evti' is unknown"),
        (3, "reducer=3 must be a name, or a mapping"),
    ],
)
def test_settings_of_a_reducer_are_never_ignored(tiny, method, reducer, message):
    with pytest.raises(ConfigError, match=message):
        lfvit.create_model(method, backbone=tiny, image_size=112, reducer=reducer)
    for nothing in (None, "none", {"name": "none", "passes": "first"}):
        lfvit.create_model(method, backbone=tiny, image_size=112, reducer=nothing)

"""Models by name."""

import pytest
import timm
import torch

import lfvit
from conftest import TINY
from lfvit.errors import ConfigError


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("deit_smal_patch16_224", "is no model of timm; try deit_small_patch16_224"),
        ("lv_vit_smal", "backbone='lv_vit_smal' is no model of timm; try lv_vit_small"),
        ("resnet18", "backbone='resnet18'"),
        ("deit_tiny_distilled_patch16_224", "a distillation token with a head"),
        ("vit_base_patch16_siglip_224", "attention pooling; no class token"),
    ],
)
def test_models_of_timm_that_cannot_serve_both_passes(backbone, message):
    with pytest.raises(ConfigError, match=message):
        lfvit.create_model("lf_vit", backbone=backbone)


@pytest.mark.parametrize("backbone", ["lv_vit_small", TINY])
def test_pretrained_weights_need_a_name_of_timm(backbone):
    with pytest.raises(ConfigError, match="pass their file to load_checkpoint"):
        lfvit.create_model("vit", backbone=backbone, image_size=224, pretrained=True)


def test_the_one_pass_model_is_timms():
    model = lfvit.create_model("vit", backbone="deit_tiny_patch16_224", num_classes=4)
    assert type(model) is timm.models.VisionTransformer
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 4)


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

"""Weights of every origin, and files that are not what they should be."""

import argparse

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import golden_vectors
import lfvit
from lfvit.errors import CheckpointError


@pytest.fixture
def model(tiny):
    return lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=7).eval()


@pytest.fixture
def timm_vit():
    return timm.create_model("deit_tiny_patch16_224", num_classes=5, depth=4).eval()


def small(**options):
    backbone = {"embed_dim": 192, "depth": 4, "num_heads": 3}
    return lfvit.create_model("lf_vit", backbone=backbone, num_classes=5, **options).eval()


def prefixed(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


PLACES = {  # of a model's weights w in a file; o are those of another model
    "compiled": lambda w, o: {"state_dict": prefixed("model._orig_mod.", w), "epoch": 3},
    "data parallel": lambda w, o: {"model": prefixed("module.", w), "optimizer": {"state": {}}},
    "net": lambda w, o: {"state_dict": prefixed("net.", w) | {"loss.weight": torch.ones(2)}},
    "backbone": lambda w, o: prefixed("backbone.", w) | {"fc.weight": torch.ones(2, 2)},
    "encoder": lambda w, o: {"model": prefixed("encoder.", w) | prefixed("decoder.", {"w": o})},
    "model_ema": lambda w, o: {"model": o, "model_ema": w},
    "timm": lambda w, o: {"state_dict": o, "state_dict_ema": w, "arch": "vit"},
    "ema": lambda w, o: {"ema": {"model": prefixed("module.", w)}, "model": prefixed("net.", o)},
    "dino": lambda w, o: {
        "student": prefixed("module.backbone.", o),
        "teacher": prefixed("backbone.", w) | {"head.last_layer.weight": torch.ones(2)},
    },
    "student and teacher": lambda w, o: prefixed("student.", o) | prefixed("teacher.", w),
    "student alone": lambda w, o: {"state_dict": prefixed("student.", w)},
}


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_of_other_trainers(tiny, place, method):
    options = {"backbone": tiny, "image_size": 112, "num_classes": 7}
    model, other, empty = (lfvit.create_model(method, **options) for _ in range(3))
    lfvit.load_checkpoint(empty, PLACES[place](model.state_dict(), other.state_dict()))
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in empty.state_dict().items())


HEADLESS = {
    "no head": lambda w: {key: value for key, value in w.items() if "head." not in key},
    "1000 classes": lambda w: (
        w | {"head.weight": torch.ones(1000, 192)} | {"head.bias": torch.ones(1000)}
    ),
    "a bias alone": lambda w: {key: value for key, value in w.items() if key != "head.weight"},
    "mae": lambda w: (
        HEADLESS["no head"](w)
        | {"mask_token": torch.ones(1), "decoder_blocks.0.norm1.weight": torch.ones(3)}
    ),
    "a projection head": lambda w: HEADLESS["no head"](w) | {"head.mlp.0.weight": torch.ones(1)},
}


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
@pytest.mark.parametrize("content", HEADLESS)
def test_a_head_that_does_not_fit_starts_fresh_and_is_logged(timm_vit, caplog, content, method):
    backbone = {"embed_dim": 192, "depth": 4, "num_heads": 3}
    model = lfvit.create_model(method, backbone=backbone, num_classes=5)
    core = model if method == "vit" else model.backbone
    before = core.head.weight.clone()
    weights = HEADLESS[content](timm_vit.state_dict())
    with pytest.raises(CheckpointError, match=r"new_head=True keeps"):
        lfvit.load_checkpoint(model, weights)
    with caplog.at_level("INFO"):
        lfvit.load_checkpoint(model, weights, new_head=True)
    assert torch.equal(core.head.weight, before)
    assert torch.equal(core.norm.weight, timm_vit.norm.weight)
    reason = {"1000 classes": "its head has 1000 classes, the model 5", "a bias alone": "its head"}
    assert f"the state dict: {reason.get(content, 'no head')}" in caplog.text
    assert "made anew: head" in caplog.text
    assert ("left out" in caplog.text) == (content in ("mae", "a projection head"))


@pytest.mark.parametrize("name", ["blocks.0.ls1.gamma", "fc_norm.weight", "reg_token"])
def test_what_decides_the_features_is_never_left_out(timm_vit, name):
    weights = timm_vit.state_dict() | {name: torch.ones(192)}
    with pytest.raises(CheckpointError, match=f"unknown: backbone.{name}|unknown: {name}"):
        lfvit.load_checkpoint(small(), weights, new_head=True)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "is a Git LFS pointer"),
        ("\n<!DOCTYPE html>\n<html>", "is a web page, not weights; download the file itself"),
        ("<html><head>", "is a web page"),
        ("<?xml version='1.0'?><Error>", "is a web page"),
        ("# a text", "no file of weights"),
        (None, "is a folder; pass the path of"),
    ],
)
def test_what_is_no_file_of_weights_is_named(model, tmp_path, suffix, content, message):
    path = tmp_path / f"weights{suffix}"
    path.mkdir() if content is None else path.write_text(content)
    if content is None and suffix == ".ckpt":  # as export.py writes it
        (path / "model.onnx").touch()
        message = "is an exported model, which python -m lfvit.runtime runs; pass the checkpoint"
    with pytest.raises(CheckpointError, match=message):
        lfvit.load_checkpoint(model, path)


def test_the_reuse_term_can_be_left_out(model, tiny):
    plain = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=7, reuse="none")
    lfvit.load_checkpoint(plain, model.state_dict())
    assert torch.equal(plain.first_pos_embed, model.first_pos_embed)
    with pytest.raises(CheckpointError, match=r"missing: reuse\.norm\.weight"):
        lfvit.load_checkpoint(model, plain.state_dict())


@pytest.mark.parametrize("reuse", ["none", "mlp", "linear", "with_class_token", "everywhere"])
def test_timm_weights_fill_both_passes(timm_vit, reuse):
    two_pass = small()
    lfvit.load_checkpoint(two_pass, timm_vit.state_dict())
    assert torch.equal(two_pass.second_pos_embed, timm_vit.pos_embed)
    assert two_pass.first_pos_embed.shape == (1, 50, 192)
    # the second pass without selection is then timm's own forward: reuse adds nothing yet
    plain = small(selector="none", reuse=reuse)
    lfvit.load_checkpoint(plain, timm_vit.state_dict())
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(plain(images).second_logits, timm_vit(images), atol=1e-5, rtol=1e-4)


def test_positions_are_resampled_to_other_image_sizes(timm_vit):
    two_pass = small(image_size=160)
    backbone = {"embed_dim": 192, "depth": 4, "num_heads": 3}
    one_pass = lfvit.create_model("vit", backbone=backbone, image_size=160, num_classes=5)
    for model in (two_pass, one_pass):
        lfvit.load_checkpoint(model, timm_vit.state_dict())
    assert torch.equal(one_pass.pos_embed, two_pass.second_pos_embed)


def test_released_files_with_their_extra_entries(tmp_path):
    shapes = golden_vectors.released_shapes(D=32, depth=4, classes=6, grid=7)
    weights = golden_vectors.weights(shapes, seed=3)
    path = tmp_path / "released.pth"
    extra = {"optimizer": {"lr": 0.1}, "epoch": 349, "flops": [np.float64(1.1), np.float32(3.8)]}
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-3), **extra}, path)
    model = lfvit.create_model(
        "lf_vit", backbone={"embed_dim": 32, "depth": 4, "num_heads": 2}, num_classes=6
    )
    lfvit.load_checkpoint(model, path)
    assert torch.equal(model.first_pos_embed, weights["pos_embed_list.0"])
    assert torch.equal(model.reuse.mlp.fc1.weight, weights["reuse_block.1.fc1.weight"])


def test_a_new_head_is_new_for_every_token_that_has_one():
    sizes = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 1}
    trained, model = (
        timm.create_model("deit_tiny_distilled_patch16_224", num_classes=classes, **sizes)
        for classes in (5, 9)
    )
    lfvit.load_checkpoint(model, trained.state_dict(), new_head=True)
    assert model.head_dist.weight.shape == (9, 12)
    assert torch.equal(model.dist_token, trained.dist_token)


def test_a_file_that_does_not_fit_names_itself_and_what_would(model, timm_vit, tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)}, path)
    message = f"{path}.*unknown: conv1.weight, fc.weight.*Files that fit: this project's"
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        lfvit.load_checkpoint(model, path)
    with pytest.raises(CheckpointError, match="embed_dim=192, depth=4, num_classes=5"):
        lfvit.load_checkpoint(model, timm_vit.state_dict())


def test_fine_tuning_takes_the_first_blocks_of_a_deeper_vit(caplog):
    sizes = {"embed_dim": 24, "num_heads": 2, "patch_size": 8, "init_values": 1e-5}
    deep = lfvit.create_model("vit", backbone={**sizes, "depth": 5}, image_size=64, num_classes=9)
    shallow = lfvit.create_model(
        "lf_vit", backbone={**sizes, "depth": 4}, image_size=64, num_classes=3
    )
    with pytest.raises(CheckpointError, match=r"unknown: backbone\.blocks\.4"):
        lfvit.load_checkpoint(shallow, deep.state_dict())
    with caplog.at_level("INFO"):
        lfvit.load_checkpoint(shallow, deep.state_dict(), new_head=True)
    assert "the first 4 of its 5 blocks" in caplog.text
    assert torch.equal(shallow.backbone.blocks[3].ls1.gamma, deep.blocks[3].ls1.gamma)
    assert torch.equal(shallow.backbone.norm.weight, deep.norm.weight)


def test_a_misfit_changes_nothing(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value + 1 for key, value in before.items()}
    del weights["backbone.norm.bias"]
    with pytest.raises(CheckpointError, match=r"missing: backbone\.norm\.bias"):
        lfvit.load_checkpoint(model, weights)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(model, tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    content = path.read_bytes()
    for keep in (0, 10, 500, len(content) * 9 // 10):
        path.write_bytes(content[:keep])
        with pytest.raises(CheckpointError, match="truncated"):
            lfvit.load_checkpoint(model, path)


def test_another_reducers_weights_are_named(tiny):
    options = {"backbone": tiny, "image_size": 112, "num_classes": 4}
    theirs = lfvit.create_model("vit", reducer="frequency", **options).state_dict()
    for reducer in ("none", "frequency", "evit"):
        lfvit.load_checkpoint(lfvit.create_model("vit", reducer=reducer, **options), theirs)
    with pytest.raises(CheckpointError, match=r"unknown: blocks\.reducer\.w1"):
        lfvit.load_checkpoint(lfvit.create_model("vit", reducer="dynamic_vit", **options), theirs)

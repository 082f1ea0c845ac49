"""A cascade of three passes: each a ViT, early exit as from the logits."""

from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F

import lfvit
from lfvit.errors import ConfigError
from lfvit.models.passes import early_exit, forward_passes
from lfvit.models.tokens import resample_pos_embed

SIZES = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8}


def cascade(**options):
    torch.manual_seed(0)
    backbone = {**SIZES, **options.pop("backbone", {})}
    model = lfvit.create_model("dvt", backbone=backbone, image_size=112, num_classes=5, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def images_of(count):
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def test_each_pass_is_a_vit_of_timm():
    model, images = cascade(reuse=False), images_of(2)
    assert model.grids == [7, 10, 14]
    for index, logits in enumerate(model(images).logits):
        side = 8 * model.grids[index]
        vit = timm.models.VisionTransformer(
            img_size=side, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5
        ).eval()
        prefix = f"backbones.{index}."
        weights = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if prefix in k}
        vit.load_state_dict({**weights, "pos_embed": model.pos_embeds[index]})
        smaller = F.interpolate(images, (side, side), mode="bilinear", align_corners=True)
        torch.testing.assert_close(logits, vit(smaller if side < 112 else images))


def test_reuse_adds_the_features_of_the_pass_before():
    with_reuse, without, images = cascade(), cascade(reuse=False), images_of(2)
    missing, _ = with_reuse.load_state_dict(without.state_dict(), strict=False)
    assert missing
    assert all(name.startswith("reuse.") for name in missing)
    for module in with_reuse.reuse:
        torch.nn.init.zeros_(module.mlp.fc2.weight)
        torch.nn.init.zeros_(module.mlp.fc2.bias)
    for a, b in zip(with_reuse(images).logits, without(images).logits, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        with_reuse.reuse[0].mlp.fc2.bias.copy_(torch.linspace(-1, 1, 24))
    first, second, third = with_reuse(images).logits
    assert torch.equal(first, without(images).logits[0])
    assert not torch.allclose(second, without(images).logits[1])
    assert torch.equal(third, without(images).logits[2])  # its own reuse still adds nothing


@pytest.mark.parametrize("bucket", [1, 4])
def test_early_exit_at_every_pass(bucket):
    model, images = cascade(), images_of(9)
    logits = forward_passes(model, images).logits
    confidence = [one.softmax(1).amax(1) for one in logits]
    etas = [(0.0, one.median().item(), 1.01) for one in confidence[:2]]
    for first, second in product(*etas):
        out = early_exit(model, images, [first, second], bucket=bucket)
        stops = [confidence[0] >= first, confidence[1] >= second]
        expected = torch.where(stops[1][:, None], logits[1], logits[2])
        expected = torch.where(stops[0][:, None], logits[0], expected)
        torch.testing.assert_close(out.logits, expected)
        assert torch.equal(out.exited, stops[0] | stops[1])
    same = early_exit(model, images, etas[0][1], bucket=bucket)
    each = early_exit(model, images, [etas[0][1]] * 2, bucket=bucket)
    assert torch.equal(same.logits, each.logits)


def test_costs_of_the_passes():
    model = cascade(reuse=False)
    for stage, side in (("first", 56), ("second", 80), ("third", 112)):
        vit = lfvit.create_model("vit", backbone=SIZES, image_size=side, num_classes=5)
        assert lfvit.count_macs(model, stage) == lfvit.count_macs(vit)
    assert lfvit.count_macs(cascade()) > lfvit.count_macs(model)


def test_a_vit_without_a_position_of_its_class_token():
    name, pixels = "vit_small_patch14_reg4_dinov2", torch.zeros(1, 3, 28, 28)
    model = lfvit.create_model("dvt", backbone=name, image_size=28, num_classes=2, reuse=False)
    vit = timm.create_model(name, img_size=28, num_classes=2)
    prefix = "backbones.1."
    weights = {k.removeprefix(prefix): v for k, v in model.state_dict().items() if prefix in k}
    vit.load_state_dict({**weights, "pos_embed": model.pos_embeds[1][:, 1:]})
    torch.testing.assert_close(model.eval()(pixels).logits[1], vit.eval()(pixels))


def test_weights_for_another_image_size():
    model = lfvit.create_model("dvt", backbone=SIZES, image_size=56, num_classes=5)
    weights = cascade().state_dict()
    lfvit.load_checkpoint(model, weights)
    for i, side in enumerate(model.grids):
        expected = resample_pos_embed(weights[f"pos_embeds.{i}"], 1 + side**2)
        torch.testing.assert_close(model.pos_embeds[i].data, expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="cascade of plain ViTs; reducers and LV-ViT"):
        cascade(reducer="evit")
    with pytest.raises(ConfigError, match="cascade of plain ViTs"):
        cascade(backbone={"family": "lv_vit"})
    with pytest.raises(ConfigError, match="ascending numbers, such as"):
        cascade(grids=[14, 7])
    with pytest.raises(ConfigError, match="has 14 x 14 patches; valid: ascending numbers up to 14"):
        cascade(grids=[7, 15])
    for wrong in ([0.5], [0.5] * 3, -1, float("nan")):
        with pytest.raises(ConfigError, match="is not valid: one number from 0 on, or a list of 2"):
            cascade().infer(torch.zeros(1, 3, 112, 112), wrong)
    with pytest.raises(ValueError, match="this model has image_size=112"):
        cascade()(torch.zeros(1, 3, 56, 56))
    with pytest.raises(ConfigError, match="has one pass"):
        lfvit.count_macs(lfvit.create_model("vit", backbone=SIZES, image_size=56), "third")

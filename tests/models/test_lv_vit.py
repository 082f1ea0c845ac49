"""LV-ViT: equal to a forward written out by hand, in one pass and in both."""

import pytest
import torch

import lfvit
import reference
from lfvit.errors import CheckpointError
from lfvit.models.lv_vit import TokenMix

SPEC = {"family": "lv_vit", "embed_dim": 24, "depth": 4, "num_heads": 2}


def lv_vit(method="vit", image_size=96, **options):
    """A small model whose BatchNorms have seen other numbers than 0 and 1."""
    torch.manual_seed(0)
    model = lfvit.create_model(
        method, backbone=SPEC, image_size=image_size, num_classes=7, **options
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if "var" in name else 0.2 * noise + tensor)
    return model


def convolve(x, kernel, stride):
    """(C, H, W) with zeros around it, one output pixel at a time."""
    k = kernel.shape[-1]
    padded = torch.zeros(len(x), x.shape[1] + k - 1, x.shape[2] + k - 1, dtype=x.dtype)
    padded[:, k // 2 : k // 2 + x.shape[1], k // 2 : k // 2 + x.shape[2]] = x
    rows = []
    for i in range(0, x.shape[1], stride):
        columns = [
            (kernel * padded[:, i : i + k, j : j + k]).sum((1, 2, 3))
            for j in range(0, x.shape[2], stride)
        ]
        rows.append(torch.stack(columns, dim=-1))
    return torch.stack(rows, dim=-2)


def slow_stem(image, w):
    for layer, stride in ((1, 2), (2, 1), (3, 1)):
        image = convolve(image, w[f"patch_embed.conv{layer}.weight"], stride)
        mean, var, scale, shift = (
            w[f"patch_embed.bn{layer}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        image = ((image - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)
    return image


def slow_heads(image, w, heads=2):
    """With half residuals, and without a bias of queries, keys and values."""
    tokens = reference.embed(slow_stem(image, w), w, w["patch_embed.proj.weight"].shape[-1])
    tokens = torch.cat([w["cls_token"][0], tokens]) + w["pos_embed"][0]
    for name in [key.removesuffix(".attn.qkv.weight") for key in w if "qkv.weight" in key]:
        w |= {f"{name}.attn.qkv.bias": 0.0, f"{name}.ls1.gamma": 0.5, f"{name}.ls2.gamma": 0.5}
    tokens, _ = reference.run_blocks(tokens, w, heads, reference.Nothing(), eps=1e-5)
    tokens = reference.layer_norm(tokens, w, "norm", 1e-5)
    return reference.linear(tokens[0], w, "head"), reference.linear(tokens[1:], w, "aux_head")


def test_one_pass_matches_a_slow_reference():
    model, images = lv_vit(image_size=64), torch.randn(2, 3, 64, 64)
    w = {key: value.double() for key, value in model.state_dict().items()}
    with torch.no_grad():
        found, dense = model(images), model(images, dense=True)
        halves = model.forward_head(model.forward_features(images))  # timm's
    torch.testing.assert_close(halves, found)
    for i, image in enumerate(images.double()):
        class_logits, token_logits = slow_heads(image, w)
        expected = class_logits + 0.5 * token_logits.max(dim=0).values
        torch.testing.assert_close(found[i].double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dense.class_logits[i].double(), class_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(dense.token_logits[i].double(), token_logits, atol=1e-4, rtol=0)


def test_the_published_small_model():
    model = lfvit.create_model("vit", backbone="lv_vit_small")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(26.2, abs=0.1)
    assert model.blocks[0].mlp.fc1.out_features == 3 * 384
    assert (len(model.blocks), model.blocks[0].attn.num_heads) == (16, 6)
    assert model.blocks[0].attn.qkv.bias is None
    assert model.blocks[0].norm1.eps == model.norm.eps == 1e-5
    assert model.blocks[3].ls1.factor == model.blocks[3].ls2.factor == 0.5


def test_boxes_are_those_of_the_released_code():
    """For every size and centre; on 7 x 7 cells .235 is mixed on average."""
    areas = []
    for kept in torch.linspace(0.0025, 0.9975, 200).tolist():
        for row in range(7):
            for column in range(7):
                mask = TokenMix.from_draw((kept, (row + 0.5) / 7, (column + 0.5) / 7), 7).mask
                top, bottom, left, right = reference.mix_box(7, kept, row, column)
                expected = torch.zeros(7, 7, dtype=torch.bool)
                expected[top:bottom, left:right] = True
                assert torch.equal(mask, expected)
                areas.append(mask.sum().item() / 49)
    assert sum(areas) / len(areas) == pytest.approx(0.235, abs=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_embedding_some_patches_is_embedding_all_and_taking_some(mixed):
    core, images = lv_vit("cf_vit").backbone.double(), torch.randn(3, 3, 96, 96).double()
    mix = TokenMix(torch.rand(3, 3) < 0.5) if mixed else None
    positions = torch.stack([torch.randperm(36)[:10] for _ in range(3)])
    with torch.no_grad():
        every, some = core.embed(images, mix), core.embed_patches(images, positions, mix)
    for b in range(3):
        torch.testing.assert_close(some[b], every[b, positions[b]])


def test_dense_outputs_are_the_second_passes_and_plain_vits_have_none(tiny):
    out = lv_vit("cf_vit")(torch.randn(2, 3, 96, 96))
    assert out.dense.token_logits.shape == (2, 4 * 5 + 4, 7)  # 5 of 9 cells become fine
    expected = out.dense.class_logits + 0.25 * out.dense.token_logits.max(dim=1).values
    torch.testing.assert_close(out.second_logits, expected)
    plain = lfvit.create_model("cf_vit", backbone=tiny, image_size=112, num_classes=7)
    assert plain(torch.randn(1, 3, 112, 112)).dense is None


def test_the_whole_image_in_the_second_pass_is_one_pass():
    """Without selection and reuse the second pass is LV-ViT, but for the aux head's share."""
    two, one = lv_vit("cf_vit", selector="none", reuse="none"), lv_vit()
    images = torch.randn(2, 3, 96, 96)
    lfvit.load_checkpoint(two, one.state_dict())
    dense, whole = two(images).dense, one(images, dense=True)
    torch.testing.assert_close(dense.class_logits, whole.class_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense.token_logits, whole.token_logits, atol=1e-5, rtol=1e-4)


def test_compiles_without_graph_breaks():
    model, images = lv_vit("cf_vit"), torch.randn(3, 3, 96, 96)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    one, other = TokenMix.from_draw((0.0, 0.0, 0.0), 3), TokenMix.from_draw((0.4, 0.7, 0.7), 3)
    with torch.no_grad():
        compiled(images, mix=one)
        with torch.compiler.set_stance("fail_on_recompile"):  # another box is the same graph
            found = compiled(images, mix=other)
        torch.testing.assert_close(found.second_logits, model(images, mix=other).second_logits)


@pytest.mark.parametrize("image_size", [96, 128])
def test_one_pass_files_fill_both_passes(image_size):
    one = lv_vit()
    two = lfvit.create_model("cf_vit", backbone=SPEC, image_size=image_size, num_classes=7)
    lfvit.load_checkpoint(two, one.state_dict())
    for name in ("aux_head.weight", "patch_embed.conv2.weight", "patch_embed.bn3.running_var"):
        assert torch.equal(two.state_dict()[f"backbone.{name}"], one.state_dict()[name])
    assert torch.equal(two.second_pos_embed, one.pos_embed) == (image_size == 96)
    again = lfvit.create_model("vit", backbone=SPEC, image_size=image_size, num_classes=7)
    lfvit.load_checkpoint(again, one.state_dict())
    assert torch.equal(again.pos_embed, two.second_pos_embed)


def test_files_of_the_other_family_and_other_sizes_are_refused(tiny):
    plain = lfvit.create_model("cf_vit", backbone=tiny, image_size=112, num_classes=7)
    with pytest.raises(CheckpointError, match="two-pass model with family=lv_vit, embed_dim=24"):
        lfvit.load_checkpoint(plain, lv_vit("cf_vit").state_dict())
    with pytest.raises(ValueError, match="images of 64 x 64 pixels, .* image_size=96"):
        lv_vit()(torch.randn(1, 3, 64, 64))
    with pytest.raises(CheckpointError, match="one-pass model with family=vit, embed_dim=24"):
        lfvit.load_checkpoint(
            lv_vit("cf_vit"), lfvit.create_model("vit", backbone=tiny, image_size=112).state_dict()
        )

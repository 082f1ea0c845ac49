"""What is recorded is what the models compute, for both kinds and whatever the block holds."""

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer

import lfvit
from lfvit.errors import ConfigError
from lfvit.measure.diagnosis import diagnose_batch, summarize, trace_blocks
from lfvit.measure.spectrum import high_frequency_energy, similarity_to_dc


def images_of(count, size=112):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def slow_attention(block, tokens):
    """The full attention of timm's block on tokens (B, N, D): (B, H, N, N)."""
    attn = block.attn
    qkv = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.num_heads, attn.head_dim))
    q, k = attn.q_norm(qkv[:, :, 0]), attn.k_norm(qkv[:, :, 1])  # (B, N, H, d)
    return (torch.einsum("bqhd,bkhd->bhqk", q, k) * attn.scale).softmax(dim=3)


def assert_follows(trace, blocks, tokens):
    """The trace is that of the blocks applied to tokens one after the other."""
    torch.testing.assert_close(trace.tokens[0], tokens)
    assert len(trace.tokens) == len(blocks) + 1
    for block, left, received in zip(blocks, trace.tokens[1:], trace.received, strict=True):
        torch.testing.assert_close(received, slow_attention(block, tokens).mean(dim=(1, 2)))
        tokens = block(tokens)
        torch.testing.assert_close(left, tokens)


@torch.no_grad()
@pytest.mark.parametrize(
    "parts", [{}, {"init_values": 0.5, "qk_norm": True, "drop_path_rate": 0.2}, {"reg_tokens": 3}]
)
def test_one_pass_models_of_timm(tiny, parts):
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=56, **tiny, **parts).eval()
    entered = []
    vit.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    images = images_of(2, 56)
    with trace_blocks(vit.blocks) as traces:
        logits = vit(images)
    (trace,) = traces
    assert_follows(trace, vit.blocks, entered[0])
    normed = vit.norm(trace.tokens[-1])
    torch.testing.assert_close(vit.forward_head(normed), logits)
    (measured,) = diagnose_batch(vit, images, 0.3)
    assert {values.shape for values in measured.values()} == {(2, 6)}
    vit.blocks[0]._forward_pre_hooks.clear()  # of this test
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())


@torch.no_grad()
@pytest.mark.parametrize("method", ["lf_vit", "cf_vit"])
def test_both_passes_of_a_two_pass_model(tiny, method):
    torch.manual_seed(0)
    model = lfvit.create_model(method, backbone=tiny, image_size=112, num_classes=4).eval()
    images, backbone = images_of(2), model.backbone
    with trace_blocks(backbone.blocks) as traces:
        output = model(images, selector="none")
    whole = [list(range(14 * 14))] * 2
    assert output.selection.fine_indices.tolist() == whole  # the grid, in its own order
    for trace, logits, tokens in zip(traces, output.logits, (50, 197), strict=True):
        assert trace.tokens[0].shape == (2, tokens, 24)
        assert_follows(trace, backbone.blocks, trace.tokens[0])
        normed = backbone.norm(trace.tokens[-1])
        torch.testing.assert_close(backbone.classify(normed)[0], logits)
    assert len(diagnose_batch(model, images, 0.3)) == 2


@torch.no_grad()
def test_measures_of_one_block_equal_their_definition(tiny):
    vit = lfvit.create_model("vit", backbone=tiny, image_size=56, num_classes=4).eval()
    images = images_of(3, 56)
    with trace_blocks(vit.blocks) as traces:
        vit(images)
    (trace,), (found,) = traces, diagnose_batch(vit, images, 0.3)
    tokens, last, scores = trace.tokens[2][1, 1:], trace.tokens[-1][1, 1:], trace.received[1][1, 1:]
    order = scores.argsort(descending=True)
    similarity, energy = similarity_to_dc(tokens[None])[0], high_frequency_energy(tokens[None])[0]
    for name, members in (("hf", order[:35]), ("lf", order[35:])):  # 70 % of 49, rounded up
        amplitude = energy[members].mean() ** 0.5
        torch.testing.assert_close(found[f"{name}_dc_similarity"][1, 2], similarity[members].mean())
        torch.testing.assert_close(found[f"{name}_amplitude"][1, 2], amplitude)
    alike = torch.cosine_similarity(tokens, last, dim=1).mean()
    torch.testing.assert_close(found["last_similarity"][1, 2], alike)
    torch.testing.assert_close(found["last_similarity"][:, -1], torch.ones(3))
    assert found["hf_amplitude"][:, 0].isnan().all()


def test_shortened_and_foreign_blocks_are_refused(tiny):
    def build(**parts):
        return VisionTransformer(img_size=56, **tiny, **parts)

    class ShortInside(Block):
        def forward(self, x, **_):
            x = (x + self.attn(self.norm1(x)))[:, :-5]
            return x + self.drop_path2(self.mlp(self.norm2(x)))

    between = build()
    between.blocks[2].register_forward_hook(lambda _, __, out: out[:, :-5])
    for vit, block in ((between, 4), (build(block_fn=ShortInside), 1)):
        with pytest.raises(ConfigError, match=f"from 50 to 45 at block {block}; .*reducer=none"):
            diagnose_batch(vit, images_of(1, 56), 0.3)
        assert not vit.blocks[0].norm1._forward_pre_hooks
    parallel = build(block_fn=ParallelScalingBlock)
    with pytest.raises(ConfigError, match="type ParallelScalingBlock cannot be traced"):
        diagnose_batch(parallel, images_of(1, 56), 0.3)


def test_the_mean_does_not_depend_on_the_batches():
    values = torch.tensor([[1.0, torch.nan], [2.0, torch.nan], [6.0, torch.nan]])
    one = summarize([[{"m": values}]])
    assert one == summarize([[{"m": values[:1]}], [{"m": values[1:]}]])
    assert (one[0]["pass"], one[0]["block"], one[1]["block"]) == (1, 0, 1)
    assert one[0]["m"] == 3
    assert one[0]["m_std"] == pytest.approx((14 / 3) ** 0.5)
    assert one[1]["m"] is None

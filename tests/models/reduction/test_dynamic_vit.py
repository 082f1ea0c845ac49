"""DynamicViT in inference and, with given masks, in training, against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
import reference_reduction
from lfvit.errors import ConfigError
from lfvit.models.reducers import dynamic_vit
from lfvit.models.reduction import answer
from reference_reduction import DynamicViT
from small_vits import KINDS, check_against_reference, images_for, randomise, slow_logits, small_vit

READ_CLASS = sorted(kind for kind, options in KINDS.items() if options.get("global_pool") != "avg")
TOLERANCE = 1e-5  # masked attention is in float32


@pytest.mark.parametrize("kind", READ_CLASS)
def test_inference_matches_a_slow_reference(kind):
    check_against_reference(
        small_vit(kind),
        "dynamic_vit",
        lambda: DynamicViT(0.7, [1, 3, 4]),
        keep_rate=0.7,
        blocks=[1, 3, 4],
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    depth=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep_rate=st.floats(0.5, 0.99),
    data=st.data(),
)
def test_inference_matches_a_slow_reference_at_any_size(depth, grid, keep_rate, data):
    blocks = sorted(data.draw(st.sets(st.integers(1, depth), min_size=1)))
    if keep_rate ** len(blocks) * grid[0] * grid[1] < 1:
        return  # one token always stays, see below
    check_against_reference(
        small_vit(depth=depth, grid=grid),
        "dynamic_vit",
        lambda: DynamicViT(keep_rate, blocks),
        keep_rate=keep_rate,
        blocks=blocks,
    )


def test_one_token_always_stays():
    vit = lfvit.reduce(small_vit(grid=(2, 2)), "dynamic_vit", keep_rate=0.1, blocks=[1, 2, 3])
    run = answer(vit, images_for(vit))[2]
    assert run.tokens.shape[1] == 1 + 1


def drawn(monkeypatch, vit, seed=0, share=0.6):
    """In place of chance, masks of 0 and 1 that the reference is given too: (B, n) per block."""
    generator = torch.Generator().manual_seed(seed)
    masks = []

    def draw(logits, hard):
        assert hard
        keep = (torch.rand(logits.shape[:2], generator=generator) < share).to(logits.dtype)
        masks.append(keep.double())
        # as Gumbel-softmax does: this value, and the gradient of the probability
        soft = logits.softmax(-1)
        return torch.stack([keep, 1 - keep], dim=-1) - soft.detach() + soft

    monkeypatch.setattr(dynamic_vit.F, "gumbel_softmax", draw)
    return masks


def training(kind="class", grid=(4, 4), **options):
    vit = lfvit.reduce(small_vit(kind, grid=grid), "dynamic_vit", blocks=[1, 3, 4], **options)
    randomise(vit.blocks.reducer, seed=7)
    vit.blocks.reducer.train()
    return vit


@pytest.mark.parametrize("kind", READ_CLASS)
def test_training_matches_a_slow_reference_with_the_same_masks(monkeypatch, kind):
    vit = training(kind)
    images, masks = images_for(vit), drawn(monkeypatch, vit)
    found = vit(images)
    assert len(masks) == 3
    reducers = iter([DynamicViT(0.7, [1, 3, 4], [m[i] for m in masks]) for i in range(2)])
    expected = slow_logits(vit, images, lambda: next(reducers))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_mask_of_ones_is_the_model_itself(monkeypatch):
    vit, plain = training(), small_vit()
    drawn(monkeypatch, vit, share=2)
    images = images_for(vit)  # apart from the epsilon in the masked attention
    torch.testing.assert_close(vit(images), plain(images), atol=1e-4, rtol=1e-4)


def test_hiding_is_leaving():
    """In the next block, the tokens that are seen answer as if the hidden ones had left."""
    vit = small_vit()
    attn = vit.blocks[0].attn
    q, k, v = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64).unbind()
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 0]] * 2, dtype=torch.float64)
    seen = mask[0].bool()
    found = dynamic_vit.masked_attention(attn, q, k, v, mask)[:, :, seen]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, seen], k[:, :, seen], v[:, :, seen]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_losses_match_a_slow_reference(monkeypatch, seed):
    vit = training(keep_rate=0.8, ratio_weight=1.5, token_weight=0.7)
    images, masks = images_for(vit, 3), drawn(monkeypatch, vit, seed)
    _, tokens, run = answer(vit, images)
    teacher = torch.randn(tokens.shape, dtype=torch.float64)
    kept = [masks[0], masks[0] * masks[1], masks[0] * masks[1] * masks[2]]
    expected = reference_reduction.dynamic_vit_loss(kept, 0.8, tokens, teacher, 1.5, 0.7)
    found = vit.blocks.reducer.loss(run.carried, tokens, teacher)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    alone = reference_reduction.dynamic_vit_loss(kept, 0.8, tokens, teacher, 1.5, 0)
    assert vit.blocks.reducer.loss(run.carried, tokens, None).item() == pytest.approx(alone)


def test_dropping_every_token_by_chance_is_survived(monkeypatch):
    vit = training(grid=(2, 2))
    drawn(monkeypatch, vit, share=-1)
    logits, tokens, run = answer(vit, images_for(vit))
    loss = logits.sum() + vit.blocks.reducer.loss(run.carried, tokens, torch.zeros_like(tokens))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_every_predictor_learns():
    vit = training()
    logits, tokens, run = answer(vit, images_for(vit))
    (logits.sum() + vit.blocks.reducer.loss(run.carried, tokens, None)).backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None] == []


def test_keeping_all_is_the_model_itself_also_in_training():
    vit = lfvit.reduce(small_vit(), "dynamic_vit", keep_rate=1).train()
    images = images_for(vit)
    torch.testing.assert_close(vit(images), small_vit()(images), atol=1e-12, rtol=0)
    assert vit.blocks.reducer.loss(answer(vit, images)[2].carried, None, None) is None


def test_drops_at_random_in_training_only():
    """A model in eval mode stays in it when it is reduced."""
    vit = lfvit.reduce(small_vit(), "dynamic_vit", keep_rate=0.5)
    images = images_for(vit)
    assert answer(vit, images)[2].tokens.shape[1] == 1 + 2  # 16 / 8
    torch.testing.assert_close(vit(images), vit(images), atol=0, rtol=0)
    assert answer(vit.train(), images)[2].tokens.shape[1] == 1 + 16


@pytest.mark.parametrize("kind", ["average of patches", "no class token"])
def test_refuses_a_head_that_reads_patches(kind):
    with pytest.raises(ConfigError, match="reads patch tokens, some of which the method drops"):
        lfvit.reduce(small_vit(kind), "dynamic_vit")


def test_refuses_a_head_that_comes_to_read_patches():
    vit = lfvit.reduce(small_vit(), "dynamic_vit")
    vit.global_pool = "avg"
    with pytest.raises(ConfigError, match="reads patch tokens, some of which the method drops"):
        vit(images_for(vit))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_rate": 0}, r"reducer\.keep_rate=0 is out of range"),
        ({"keep_rate": 1.5}, r"reducer\.keep_rate=1.5 is out of range"),
        ({"ratio_weight": -1}, r"reducer\.ratio_weight=-1 is out of range"),
        ({"token_weight": "a"}, r"reducer\.token_weight='a' is out of range"),
        ({"blocks": [7]}, r"reducer\.blocks=\[7\]"),
    ],
)
def test_refuses_settings_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        lfvit.reduce(small_vit(), "dynamic_vit", **options)

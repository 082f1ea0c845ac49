"""Each reducer against a slow reference written from its paper, on every kind of ViT."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
import reference_reduction as reference
from lfvit.errors import ConfigError
from lfvit.models.reducers import dynamic_vit
from lfvit.models.reducers.frequency import Frequency
from lfvit.models.reducers.tome import bipartite_soft_matching
from lfvit.models.reduction import forward_tokens
from small_vits import KINDS, check_against_reference, images_for, randomise, slow_logits, small_vit

TOLERANCE = 1e-5  # class attention, averages and log sizes are in float32
READ_CLASS = sorted(kind for kind, options in KINDS.items() if options.get("global_pool") != "avg")
FIXED = {  # options, and the reference's reducer
    "evit": ({"keep_rate": 0.6, "blocks": [2, 3, 5]}, lambda: reference.EViT(0.6, [2, 3, 5])),
    "tome": ({"r": 2}, lambda: reference.ToMe([2] * 5)),
    "frequency": (
        {"removed": [0.4, 0.3, 0.3], "blocks": [1, 3, 4], "windows": [2, 2, 1]},
        lambda: reference.Frequency([0.4, 0.3, 0.3], [1, 3, 4], [2, 2, 1]),
    ),
    "dynamic_vit": (
        {"keep_rate": 0.7, "blocks": [1, 3, 4]},
        lambda: reference.DynamicViT(0.7, [1, 3, 4]),
    ),
}
CASES = [
    (name, kind)
    for name in FIXED
    for kind in (READ_CLASS if name == "dynamic_vit" else sorted(KINDS))
    if (name, kind) != ("evit", "no class token")
]
quick = settings(max_examples=20, deadline=None, derandomize=True)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_matches_a_slow_reference(name, kind):
    options, slow = FIXED[name]
    check_against_reference(small_vit(kind), name, slow, tolerance=TOLERANCE, **options)


def draw_blocks(data, depth, most=None):
    return sorted(data.draw(st.sets(st.integers(1, depth), min_size=1, max_size=most)))


@quick
@given(st.integers(1, 5), st.sampled_from([1, 2, 4]), grids, st.floats(0.01, 1), st.data())
def test_evit_at_any_size(depth, heads, grid, keep_rate, data):
    blocks = draw_blocks(data, depth)
    check_against_reference(
        small_vit(depth=depth, heads=heads, grid=grid),
        "evit",
        lambda: reference.EViT(keep_rate, blocks),
        tolerance=TOLERANCE,
        keep_rate=keep_rate,
        blocks=blocks,
    )


@quick
@given(
    st.sampled_from(["class", "no class token", "distilled", "registers"]),
    st.sampled_from([1, 2, 4]),
    grids,
    st.lists(st.integers(0, 14), min_size=1, max_size=5),
)
def test_tome_at_any_size(kind, heads, grid, r):
    """Also where half of the tokens are fewer than r."""
    vit = small_vit(kind, depth=len(r), heads=heads, grid=grid)
    check_against_reference(vit, "tome", lambda: reference.ToMe(r), tolerance=TOLERANCE, r=r)


@quick
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([[4, 2, 1], [3, 3, 1], [6, 2, 1], [2, 2, 2], [1, 1, 1], [6, 3, 3]]),
    st.booleans(),
    st.data(),
)
def test_frequency_at_any_size(depth, heads, grid, windows, position_term, data):
    """Small shares in many windows leave windows that lost no token; 0 removes none at all."""
    blocks = draw_blocks(data, depth, 3)
    windows = windows[: len(blocks)]
    removed = [data.draw(st.sampled_from([0, 0.05, 0.3, 0.5, 0.95])) for _ in blocks]
    check_against_reference(
        small_vit(depth=depth, heads=heads, grid=grid),
        "frequency",
        lambda: reference.Frequency(removed, blocks, windows, position_term),
        tolerance=TOLERANCE,
        removed=removed,
        blocks=blocks,
        windows=windows,
        position_term=position_term,
    )


@quick
@given(st.integers(1, 5), grids, st.floats(0.5, 0.99), st.data())
def test_dynamic_vit_at_any_size(depth, grid, keep_rate, data):
    blocks = draw_blocks(data, depth)
    if keep_rate ** len(blocks) * grid[0] * grid[1] < 1:
        return  # one token always stays, see below
    check_against_reference(
        small_vit(depth=depth, grid=grid),
        "dynamic_vit",
        lambda: reference.DynamicViT(keep_rate, blocks),
        tolerance=TOLERANCE,
        keep_rate=keep_rate,
        blocks=blocks,
    )


def test_default_blocks_are_a_quarter_half_and_three_quarters_of_the_depth():
    for depth, expected in ((12, [4, 7, 10]), (16, [5, 9, 13]), (4, [2, 3, 4]), (1, [1])):
        vit = lfvit.reduce(small_vit(depth=depth, grid=(2, 2)), "evit")
        assert [block + 1 for block in vit.blocks.reducer.blocks] == expected


# --- ToMe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "r"), [(0.1, 2), (0.25, 4), (0.9, 14), (0.0, 0)])
def test_a_share_of_the_patches_is_a_number_of_pairs(share, r):
    a, b = lfvit.reduce(small_vit(), "tome", r=share), lfvit.reduce(small_vit(), "tome", r=r)
    torch.testing.assert_close(a(images_for(a)), b(images_for(a)), rtol=0, atol=0)


def test_attention_need_not_be_proportional():
    class Plain(reference.ToMe):
        def attention(self, block, logits):
            return logits.softmax(-1)

    check_against_reference(small_vit(), "tome", lambda: Plain([3] * 5), r=3, proportional=False)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(2, 15), prefix=st.integers(0, 3), data=st.data())
def test_the_most_similar_tokens_are_matched(n, prefix, data):
    r = data.draw(st.integers(1, n // 2))
    metric = torch.randn(3, n, 4, generator=torch.Generator().manual_seed(n))
    in_a = [i for i in range(n) if (prefix + i) % 2 == 0]
    in_b = [i for i in range(n) if (prefix + i) % 2 == 1]
    cosine = torch.nn.functional.cosine_similarity(metric[:, :, None], metric[:, None], dim=-1)
    first_b = n - r - len(in_b)
    for image, to in enumerate(bipartite_soft_matching(metric, r, prefix).tolist()):
        assert set(to) == set(range(n - r))
        assert [to[i] for i in in_b] == list(range(first_b, n - r))
        best = {i: max(cosine[image, i, j].item() for j in in_b) for i in in_a}
        merged = [i for i in in_a if to[i] >= first_b]
        assert sorted(merged) == sorted(sorted(in_a, key=lambda i: -best[i])[:r])
        for i in merged:
            partner = next(j for j in in_b if to[j] == to[i])
            assert cosine[image, i, partner].item() == pytest.approx(best[i])


# --- frequency-aware reduction ------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("windows", [[2, 2, 2], [4, 2, 1], [2, 1, 1]])
def test_an_empty_window_is_no_token(monkeypatch, windows, fused):
    """All tokens of low score lie in the upper left quarter: the other windows lose none."""
    removed, blocks = [0.1, 0.1, 0.2], [1, 2, 4]
    scores = torch.arange(16, dtype=torch.float64)
    scores[[0, 1, 4, 5]] = torch.arange(-10.0, -6.0, dtype=torch.float64)
    original = Frequency.attention

    def by_given_scores(self, index, attn, q, k, v, bias, state):
        x, metric = original(self, index, attn, q, k, v, bias, state)
        if metric is not None:
            metric = metric.clone()
            metric[:, : state.memory.n_high] = scores[state.memory.high].to(metric.dtype)
        return x, metric

    monkeypatch.setattr(Frequency, "attention", by_given_scores)
    vit = small_vit(grid=(4, 4))
    for block in vit.blocks:
        block.attn.fused_attn = fused
    lfvit.reduce(vit, "frequency", removed=removed, blocks=blocks, windows=windows)
    randomise(vit.blocks.reducer, seed=3)
    images, made = images_for(vit), []

    def slow():
        made.append(reference.Frequency(removed, blocks, windows, scores=scores))
        return made[-1]

    expected = slow_logits(vit, images, slow)
    torch.testing.assert_close(vit(images), expected, atol=TOLERANCE, rtol=TOLERANCE)
    dc_size = forward_tokens(vit, images).state.memory.dc_size
    assert [len(patches) for patches in made[0].dc] == dc_size[0][dc_size[0] > 0].tolist()
    if windows[-1] > 1:
        assert (dc_size == 0).sum(1).tolist() == [3, 3]


def test_w1_of_0_and_w2_of_minus_1_leave_attention_as_it_is():
    class Plain(reference.Frequency):
        def attention(self, block, logits):
            return logits.softmax(-1)

    vit = lfvit.reduce(small_vit(), "frequency", removed=0.4, blocks=[1, 2], windows=2)
    images = images_for(vit)
    expected = slow_logits(vit, images, lambda: Plain([0.4, 0.4], [1, 2], [2, 2]))
    torch.testing.assert_close(vit(images), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_every_block_after_the_first_reduction_has_weights_that_matter():
    vit = lfvit.reduce(small_vit(), "frequency", blocks=[2, 4], windows=1, w1_init=0.3)
    reducer = vit.blocks.reducer
    assert reducer.w1.shape == reducer.w2.shape == (3, 2)
    vit(images_for(vit)).sum().backward()
    assert (reducer.w1.grad != 0).all()
    assert (reducer.w2.grad != 0).all()


def test_a_dc_token_averages_all_patches_it_ever_stood_for():
    vit = small_vit(grid=(6, 6))
    lfvit.reduce(vit, "frequency", removed=0.5, blocks=[1, 2, 3], windows=[3, 3, 1])
    state = forward_tokens(vit, images_for(vit)).state
    assert state.memory.n_high == 5  # 36, 18, 9, 5
    assert state.memory.dc_size.tolist() == [[31], [31]]
    assert state.size().tolist() == [[1] * 5 + [31]] * 2


# --- DynamicViT in training ---------------------------------------------------------------------


def given_masks(monkeypatch, seed=0, share=0.6):
    """In place of chance, masks of 0 and 1 that the reference gets too: (B, n) per block."""
    generator, masks = torch.Generator().manual_seed(seed), []

    def draw(logits, hard):
        assert hard
        keep = (torch.rand(logits.shape[:2], generator=generator) < share).to(logits.dtype)
        masks.append(keep.double())
        soft = logits.softmax(-1)  # as Gumbel-softmax: this value, the probability's gradient
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
    vit, masks = training(kind), given_masks(monkeypatch)
    images = images_for(vit)
    found = vit(images)
    assert len(masks) == 3
    slow = iter([reference.DynamicViT(0.7, [1, 3, 4], [m[i] for m in masks]) for i in range(2)])
    expected = slow_logits(vit, images, lambda: next(slow))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_losses_match_a_slow_reference(monkeypatch, seed):
    vit = training(keep_rate=0.8, ratio_weight=1.5, token_weight=0.7)
    masks = given_masks(monkeypatch, seed)
    _, tokens, state = forward_tokens(vit, images_for(vit, 3))
    teacher = torch.randn(tokens.shape, dtype=torch.float64)
    kept = [masks[0], masks[0] * masks[1], masks[0] * masks[1] * masks[2]]
    for token_weight, given_teacher in ((0.7, teacher), (0, None)):
        expected = reference.dynamic_vit_loss(kept, 0.8, tokens, teacher, 1.5, token_weight)
        found = vit.blocks.reducer.loss(state, tokens, given_teacher).item()
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_mask_of_ones_is_the_model_itself(monkeypatch):
    vit, plain = training(), small_vit()
    given_masks(monkeypatch, share=2)
    images = images_for(vit)  # apart from the epsilon in the masked attention
    torch.testing.assert_close(vit(images), plain(images), atol=1e-4, rtol=1e-4)


def test_a_hidden_token_has_no_effect_on_the_others():
    attn = small_vit().blocks[0].attn
    q, k, v = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64).unbind()
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 0]] * 2, dtype=torch.float64)
    visible = mask[0].bool()
    found = dynamic_vit.masked_attention(attn, q, k, v, mask)[:, :, visible]
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(q[:, :, visible], k[:, :, visible], v[:, :, visible])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.6, -1])
def test_every_predictor_learns_even_if_all_tokens_are_dropped(monkeypatch, share):
    vit = training(grid=(2, 2))
    given_masks(monkeypatch, share=share)
    logits, tokens, state = forward_tokens(vit, images_for(vit))
    loss = logits.sum() + vit.blocks.reducer.loss(state, tokens, torch.zeros_like(tokens))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.parameters())


def test_tokens_are_dropped_at_random_in_training_only():
    vit = lfvit.reduce(small_vit(), "dynamic_vit", keep_rate=0.5)
    images = images_for(vit)
    assert forward_tokens(vit, images).state.num_tokens == 2  # 16 / 8
    torch.testing.assert_close(vit(images), vit(images), atol=0, rtol=0)
    assert forward_tokens(vit.train(), images).state.num_tokens == 16
    everything = lfvit.reduce(small_vit(), "dynamic_vit", keep_rate=1).train()
    torch.testing.assert_close(everything(images), small_vit()(images), atol=1e-12, rtol=0)
    state = forward_tokens(everything, images).state
    assert everything.blocks.reducer.loss(state, None, None) is None


def test_one_token_always_stays():
    vit = lfvit.reduce(small_vit(grid=(2, 2)), "dynamic_vit", keep_rate=0.1, blocks=[1, 2, 3])
    assert forward_tokens(vit, images_for(vit)).state.num_tokens == 1


@pytest.mark.parametrize("kind", ["average of patches", "no class token"])
def test_a_head_that_reads_patches_needs_every_patch(kind):
    message = "reads patch tokens, some of which the method drops"
    with pytest.raises(ConfigError, match=message):
        lfvit.reduce(small_vit(kind), "dynamic_vit")
    vit = lfvit.reduce(small_vit(), "dynamic_vit")
    vit.global_pool = "avg"
    with pytest.raises(ConfigError, match=message):
        vit(images_for(vit))

"""Each reducer against a slow reference written from its paper, on every kind of ViT."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
import reference_reduction as reference
from lfvit.errors import ConfigError
from lfvit.measure.costs import is_adaptive, macs_by_image
from lfvit.models.reducers import REDUCERS, dynamic_vit
from lfvit.models.reducers.frequency import Frequency
from lfvit.models.reduction import forward_tokens
from small_vits import (
    KINDS,
    check_against_reference,
    images_for,
    possible,
    randomise,
    slow_logits,
    small_vit,
)

TOLERANCE = 1e-5  # class attention, averages and log sizes are in float32
READ_CLASS = sorted(kind for kind, options in KINDS.items() if options.get("global_pool") != "avg")
FIXED = {  # the reference's class, and options of both
    "evit": (reference.EViT, {"keep_rate": 0.6, "blocks": [2, 3, 5]}),
    "tome": (reference.ToMe, {"r": [2, 2, 2, 2, 2]}),
    "frequency": (
        reference.Frequency,
        {"removed": [0.4, 0.3, 0.3], "blocks": [1, 3, 4], "windows": [2, 2, 1]},
    ),
    "dynamic_vit": (reference.DynamicViT, {"keep_rate": 0.7, "blocks": [1, 3, 4]}),
    "topk": (reference.TopK, {"keep_rate": 0.7, "blocks": [1, 3, 4]}),
    "dpc_knn": (reference.DPCKNN, {"keep_rate": 0.7, "blocks": [1, 3, 4], "neighbors": 3}),
    "k_medoids": (reference.KMedoids, {"keep_rate": 0.7, "blocks": [1, 3, 4], "iterations": 2}),
    "patch_merger": (reference.PatchMerger, {"keep_rate": 0.7, "blocks": [1, 3, 4]}),
    "sinkhorn": (
        reference.Sinkhorn,
        {"keep_rate": 0.7, "blocks": [1, 3, 4], "temperature": 0.5, "iterations": 2},
    ),
    "sit": (reference.SiT, {"keep_rate": 0.7, "blocks": [1, 3, 4]}),
    "ats": (reference.ATS, {"keep_rate": 0.7, "blocks": [1, 3, 4]}),
    "evo_vit": (reference.EvoViT, {"keep_rate": 0.6, "blocks": [2, 4]}),
    "a_vit": (reference.AViT, {"gate_scale": 2.0, "gate_center": 1.0}),
    "tofu": (reference.ToFu, {"r": [2, 2, 2, 2, 2], "prune_blocks": 2}),
}
CASES = [(name, kind) for name in FIXED for kind in sorted(KINDS) if possible(name, kind)]
quick = settings(max_examples=8, deadline=None, derandomize=True)
heads_and_grids = st.sampled_from([1, 2, 4]), st.tuples(st.integers(1, 6), st.integers(1, 6))


def vit_for(name, kind="class", **sizes):
    """For sums of attention in float32, none may be next to nothing."""
    vit = small_vit(kind, **sizes)
    if name in ("ats", "evo_vit"):
        with torch.no_grad():
            for block in vit.blocks:
                block.attn.qkv.weight *= 0.3
    return vit


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_matches_a_slow_reference(name, kind):
    slow, options = FIXED[name]
    check_against_reference(vit_for(name, kind), name, slow, **options)


@pytest.mark.parametrize("name", [name for name in FIXED if "keep_rate" in FIXED[name][1]])
@quick
@given(st.integers(1, 5), *heads_and_grids, st.floats(0.01, 1, exclude_max=True), st.data())
def test_a_share_kept_at_any_size(name, depth, heads, grid, keep_rate, data):
    first = 2 if name == "evo_vit" else 1
    depth = max(depth, first)
    blocks = sorted(data.draw(st.sets(st.integers(first, depth), min_size=1)))
    slow, options = FIXED[name]
    options = {**options, "keep_rate": keep_rate, "blocks": blocks}
    vit = vit_for(name, depth=depth, heads=heads, grid=grid)
    check_against_reference(vit, name, slow, **options)


@quick
@given(
    st.sampled_from(["class", "no class token", "distilled", "registers"]),
    *heads_and_grids,
    st.lists(st.integers(0, 14), min_size=1, max_size=5),
)
def test_pairs_at_any_size(kind, heads, grid, r):
    """Also where half of the tokens are fewer than r."""
    vits = [small_vit(kind, depth=len(r), heads=heads, grid=grid) for _ in range(2)]
    check_against_reference(vits[0], "tome", reference.ToMe, r=r)
    check_against_reference(vits[1], "tofu", reference.ToFu, r=r, prune_blocks=len(r) // 2)


@quick
@given(
    st.integers(1, 5),
    *heads_and_grids,
    st.sampled_from([[4, 2, 1], [3, 3, 1], [6, 2, 1], [2, 2, 2], [1, 1, 1], [6, 3, 3]]),
    st.booleans(),
    st.data(),
)
def test_frequency_at_any_size(depth, heads, grid, windows, position_term, data):
    """Small shares in many windows leave windows that lost no token; 0 removes none at all."""
    blocks = sorted(data.draw(st.sets(st.integers(1, depth), min_size=1, max_size=3)))
    removed = [data.draw(st.sampled_from([0, 0.05, 0.3, 0.5, 0.95])) for _ in blocks]
    options = {"removed": removed, "blocks": blocks, "windows": windows[: len(blocks)]}
    vit = small_vit(depth=depth, heads=heads, grid=grid)
    options["position_term"] = position_term
    check_against_reference(vit, "frequency", reference.Frequency, **options)


def test_default_blocks_are_a_quarter_half_and_three_quarters_of_the_depth():
    for depth, expected in ((12, [4, 7, 10]), (16, [5, 9, 13]), (4, [2, 3, 4]), (1, [1])):
        vit = lfvit.reduce(small_vit(depth=depth, grid=(2, 2)), "evit")
        assert [block + 1 for block in vit.blocks.reducer.blocks] == expected


@pytest.mark.parametrize(("share", "r"), [(0.1, 2), (0.25, 4), (0.9, 14), (0.0, 0)])
def test_a_share_of_the_patches_is_a_number_of_pairs(share, r):
    a, b = lfvit.reduce(small_vit(), "tome", r=share), lfvit.reduce(small_vit(), "tome", r=r)
    torch.testing.assert_close(a(images_for(a)), b(images_for(a)), rtol=0, atol=0)


class Unproportional(reference.ToMe):
    def attention(self, block, logits):
        return logits.softmax(-1)


class EachOnce(reference.ToMe):
    """The released patch for timm leaves average pooling as it is: every token counts once."""

    def average(self, tokens):
        return tokens[self.prefix :].mean(0)


DROPPED = {"keep_rate": 0.6, "blocks": [2, 3, 5], "fuse_token": False}
VARIANTS = [
    ("tome", "class", {"r": 3, "proportional": False}, lambda: Unproportional([3] * 5)),
    ("tome", "average of patches", {"r": 2, "weighted_pool": False}, lambda: EachOnce([2] * 5)),
    *(("evit", kind, DROPPED, lambda: reference.EViT(**DROPPED)) for kind in READ_CLASS),
]


@pytest.mark.parametrize(("name", "kind", "options", "slow"), VARIANTS)
def test_variants_match_a_slow_reference(name, kind, options, slow):
    check_against_reference(small_vit(kind), name, lambda **_: slow(), **options)


@pytest.mark.parametrize(("r", "slope"), [(1, -1.0), (3, -0.5), (6, 0.3), (3, 1.0), (6, -1.0)])
def test_a_slope_is_that_of_the_released_code(r, slope):
    vit = small_vit(depth=5, grid=(7, 6))
    numbers = reference.tome_schedule(5, r, slope)
    assert sum(numbers) <= 5 * r
    check_against_reference(vit, "tome", lambda **_: reference.ToMe(numbers), r=r, slope=slope)


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigError, match=r"slope=0.5 .* one r, not from reducer.r=\[1.0, 2.0"):
        lfvit.reduce(small_vit(depth=2), "tome", r=[1, 2], slope=0.5)
    with pytest.raises(ConfigError, match="a head that reads patch tokens"):
        lfvit.reduce(small_vit("average of patches"), "evit", fuse_token=False)


def test_the_keep_rate_falls_as_in_the_released_code():
    evit = lfvit.reduce(small_vit(), "evit", keep_rate=0.7, shrink_epochs=100).blocks.reducer
    for epoch in (0.0, 9.9, 10.0, 10.5, 42.25, 60.0, 109.75, 110.0, 299.5):
        evit.start_batch(epoch)
        assert evit.keep_rate == pytest.approx(reference.evit_keep_rate(epoch, 10, 100, 0.7))
    evit = lfvit.reduce(small_vit(), "evit", keep_rate=0.7).blocks.reducer
    evit.start_batch(0.0)
    assert evit.keep_rate == 0.7


@pytest.mark.parametrize(
    ("windows", "fused"), [([2, 2, 2], True), ([2, 2, 2], False), ([4, 2, 1], True)]
)
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
    state = forward_tokens(vit, images).state
    dc_size = state.size()[:, state.memory.n_high :]
    assert [len(patches) for patches in made[0].dc] == dc_size[0][dc_size[0] > 0].tolist()
    if windows[-1] > 1:
        assert (dc_size == 0).sum(1).tolist() == [3, 3]


def test_losses_of_halting_match_a_slow_reference():
    options = {"gate_scale": 2.0, "gate_center": 1.0}
    weights = {"ponder_weight": 0.3, "prior_weight": 0.2, "target_depth": 3}
    vit = lfvit.reduce(small_vit(), "a_vit", **options, **weights)
    images, made = images_for(vit), []
    vit.blocks.reducer.train()
    logits, _, state = forward_tokens(vit, images)
    expected = slow_logits(vit, images, lambda: made.append(reference.AViT(**options)) or made[-1])
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    ponder = torch.tensor([slow.ponder for slow in made]).mean().item()
    halted = torch.stack(state.memory.scores)
    halted = (halted / halted.sum()).clamp(0.01, 0.99).tolist()
    density = [math.exp(-((i - 3) ** 2) / 2) for i in range(5)]
    prior = [0.98 * value / sum(density[:3]) for value in density]
    pairs = zip(prior, halted, strict=True)
    divergence = sum(p * (math.log(p) - math.log(q)) for p, q in pairs) / 5
    found = vit.blocks.reducer.loss(state, None, None).item()
    assert found == pytest.approx(0.3 * ponder + 0.2 * divergence, rel=1e-5)
    assert state.memory.ponder.double().mean().item() == pytest.approx(ponder, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in REDUCERS if REDUCERS[name].adaptive])
def test_an_image_costs_what_its_tokens_cost(name):
    """Alone, an image has no padding; the most that it can cost is counted without images."""
    vit = lfvit.reduce(vit_for(name).float(), name, **FIXED[name][1])
    images = images_for(vit, 6).float()
    macs = macs_by_image(vit, images)[:, 0]
    assert len(set(macs.tolist())) > 1
    assert macs.max() <= lfvit.count_macs(vit)
    assert is_adaptive(vit)
    assert not is_adaptive(small_vit())


def given_masks(monkeypatch, share=0.6):
    """In place of chance, masks of 0 and 1 that the reference gets too: (B, n) per block."""
    generator, masks = torch.Generator().manual_seed(0), []

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
    """The logits, and the losses with a teacher and without."""
    vit = training(kind, keep_rate=0.8, ratio_weight=1.5, token_weight=0.7)
    masks, images = given_masks(monkeypatch), images_for(vit)
    logits, tokens, state = forward_tokens(vit, images)
    assert len(masks) == 3
    slow = iter([reference.DynamicViT(0.8, [1, 3, 4], [m[i] for m in masks]) for i in range(2)])
    expected = slow_logits(vit, images, lambda: next(slow))
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    teacher = torch.randn(tokens.shape, dtype=torch.float64)
    kept = [masks[0], masks[0] * masks[1], masks[0] * masks[1] * masks[2]]
    for token_weight, given_teacher in ((0.7, teacher), (0, None)):
        expected = reference.dynamic_vit_loss(kept, 0.8, tokens, teacher, 1.5, token_weight)
        found = vit.blocks.reducer.loss(state, tokens, given_teacher).item()
        assert found == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize("kind", ["average of patches", "no class token"])
def test_a_head_that_reads_patches_needs_every_patch(kind):
    message = "reads patch tokens, some of which the method drops"
    with pytest.raises(ConfigError, match=message):
        lfvit.reduce(small_vit(kind), "dynamic_vit")
    vit = lfvit.reduce(small_vit(), "dynamic_vit")
    vit.global_pool = "avg"
    with pytest.raises(ConfigError, match=message):
        vit(images_for(vit))

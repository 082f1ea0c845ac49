"""Frequency-aware reduction against a slow reference that builds every matrix of Eq. 12."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.models.reducers.frequency import Frequency
from reference_reduction import Frequency as Slow
from small_vits import KINDS, check_against_reference, images_for, randomise, slow_logits, small_vit

TOLERANCE = 1e-5  # averages and scores are in float32


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_matches_a_slow_reference(kind):
    removed, blocks, windows = [0.4, 0.3, 0.3], [1, 3, 4], [2, 2, 1]
    check_against_reference(
        small_vit(kind),
        "frequency",
        lambda: Slow(removed, blocks, windows),
        tolerance=TOLERANCE,
        removed=removed,
        blocks=blocks,
        windows=windows,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    depth=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 4]),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    windows=st.sampled_from([[4, 2, 1], [3, 3, 1], [6, 2, 1], [2, 2, 2], [1, 1, 1], [6, 3, 3]]),
    position_term=st.booleans(),
    data=st.data(),
)
def test_matches_a_slow_reference_at_any_size(depth, heads, grid, windows, position_term, data):
    """Small shares in many windows leave windows that lost no token; 0 removes none at all."""
    blocks = sorted(data.draw(st.sets(st.integers(1, depth), min_size=1, max_size=3)))
    windows = windows[: len(blocks)]
    share = st.sampled_from([0, 0.05, 0.3, 0.5, 0.95])
    removed = [data.draw(share) for _ in blocks]
    check_against_reference(
        small_vit(depth=depth, heads=heads, grid=grid),
        "frequency",
        lambda: Slow(removed, blocks, windows, position_term),
        tolerance=TOLERANCE,
        removed=removed,
        blocks=blocks,
        windows=windows,
        position_term=position_term,
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("windows", [[2, 2, 2], [4, 2, 1], [2, 1, 1]])
def test_an_empty_window_is_no_token(monkeypatch, windows, fused):
    """All tokens of low score lie in the upper left quarter: the other windows lose none."""
    grid, removed, blocks = (4, 4), [0.1, 0.1, 0.2], [1, 2, 4]
    scores = torch.arange(16, dtype=torch.float64)
    for low, patch in enumerate([0, 1, 4, 5]):
        scores[patch] = low - 10
    original = Frequency.attention

    def by_given_scores(self, index, attn, q, k, v, bias, carried):
        mixed, seen = original(self, index, attn, q, k, v, bias, carried)
        if seen is not None:
            seen = seen.clone()
            seen[:, : carried.memory.n_high] = scores[carried.memory.high].to(seen.dtype)
        return mixed, seen

    monkeypatch.setattr(Frequency, "attention", by_given_scores)
    vit = small_vit(grid=grid)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    lfvit.reduce(vit, "frequency", removed=removed, blocks=blocks, windows=windows)
    randomise(vit.blocks.reducer, seed=3)
    images = images_for(vit)
    made = []

    def slow():
        made.append(Slow(removed, blocks, windows, scores=scores))
        return made[-1]

    expected = slow_logits(vit, images, slow)
    torch.testing.assert_close(vit(images), expected, atol=TOLERANCE, rtol=TOLERANCE)
    tokens = vit.blocks.run(vit._pos_embed(vit.patch_embed(images)))
    memory = tokens.carried.memory
    assert [len(patches) for patches in made[0].dc] == memory.merged[0][
        memory.merged[0] > 0
    ].tolist()
    if windows[-1] > 1:
        assert (memory.merged == 0).sum(1).tolist() == [3, 3]


def test_w1_of_0_and_w2_of_minus_1_leave_attention_as_it_is():
    class Plain(Slow):
        def attention(self, block, logits):
            return logits.softmax(-1)

    vit = lfvit.reduce(small_vit(), "frequency", removed=0.4, blocks=[1, 2], windows=2)
    images = images_for(vit)
    expected = slow_logits(vit, images, lambda: Plain([0.4, 0.4], [1, 2], [2, 2]))
    torch.testing.assert_close(vit(images), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_reweighting_starts_after_the_first_reduction():
    """The parameters have a row for each block with DC tokens, and every row matters."""
    vit = lfvit.reduce(small_vit(), "frequency", blocks=[2, 4], windows=1, w1_init=0.3)
    images = images_for(vit)
    assert vit.blocks.reducer.w1.shape == vit.blocks.reducer.w2.shape == (3, 2)
    vit(images).sum().backward()
    assert (vit.blocks.reducer.w1.grad != 0).all()
    assert (vit.blocks.reducer.w2.grad != 0).all()


def test_a_dc_token_averages_all_patches_it_ever_stood_for():
    vit = small_vit(grid=(6, 6))
    lfvit.reduce(vit, "frequency", removed=0.5, blocks=[1, 2, 3], windows=[3, 3, 1])
    run = vit.blocks.run(vit._pos_embed(vit.patch_embed(images_for(vit))))
    assert run.carried.memory.n_high == 5  # 36, 18, 9, 5
    assert run.carried.memory.merged.tolist() == [[31], [31]]
    assert run.carried.sizes().tolist() == [[1] * 5 + [31]] * 2


@pytest.mark.parametrize("windows", [[2, 3, 1], [1, 2, 1], [4, 3, 1], [2, 1, 2]])
def test_refuses_windows_that_cut_through_earlier_ones(windows):
    with pytest.raises(ConfigError, match="does not divide .* such as"):
        lfvit.reduce(small_vit(), "frequency", windows=windows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removed": 1}, r"reducer\.removed=1 is out of range; valid: .* below 1"),
        ({"removed": -0.1}, r"reducer\.removed=-0.1 is out of range"),
        ({"removed": [0.1, 0.2]}, r"reducer\.removed=.* needs one value per reducing block: 3"),
        ({"removed": [0.1, 0.2, 2]}, r"reducer\.removed=2 is out of range"),
        ({"windows": 0}, r"reducer\.windows=0 must be a whole number, 1 or more"),
        ({"windows": 1.5}, r"reducer\.windows=1.5 must be a whole number"),
        ({"windows": [1]}, r"reducer\.windows=\[1\] needs one value per reducing block: 3"),
        ({"blocks": [1]}, r"reducer\.windows=.* needs one value per reducing block: 1"),
        ({"blocks": [9]}, r"reducer\.blocks=\[9\]"),
        ({"position_term": 1}, r"reducer\.position_term=1 must be true or false"),
        ({"w1_init": "a"}, r"reducer\.w1_init='a' is out of range; valid: a number"),
        ({"w2_init": None}, r"reducer\.w2_init=None is out of range; valid: a number"),
    ],
)
def test_refuses_settings_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        lfvit.reduce(small_vit(), "frequency", **options)

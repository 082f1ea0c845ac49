"""EViT against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from reference_reduction import EViT
from small_vits import KINDS, check_against_reference, images_for, small_vit

TOLERANCE = 1e-5  # class attention is in float32


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"no class token"}))
def test_matches_a_slow_reference(kind):
    vit = small_vit(kind)
    check_against_reference(
        vit,
        "evit",
        lambda: EViT(0.6, [2, 3, 5]),
        tolerance=TOLERANCE,
        keep_rate=0.6,
        blocks=[2, 3, 5],
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    depth=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 4]),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep_rate=st.floats(0.01, 1),
    data=st.data(),
)
def test_matches_a_slow_reference_at_any_size(depth, heads, grid, keep_rate, data):
    blocks = sorted(data.draw(st.sets(st.integers(1, depth), min_size=1)))
    check_against_reference(
        small_vit(depth=depth, heads=heads, grid=grid),
        "evit",
        lambda: EViT(keep_rate, blocks),
        tolerance=TOLERANCE,
        keep_rate=keep_rate,
        blocks=blocks,
    )


def test_the_others_are_summed_by_their_class_attention():
    """With one token kept of four, in the only block."""
    vit = small_vit(depth=1, grid=(2, 2))
    lfvit.reduce(vit, "evit", keep_rate=0.25, blocks=[1])
    run = vit.blocks.run(vit._pos_embed(vit.patch_embed(images_for(vit))))
    assert run.tokens.shape[1] == 1 + 1 + 1
    assert run.carried.sizes().tolist() == [[1, 3], [1, 3]]


def test_learns_through_the_fused_token():
    vit = lfvit.reduce(small_vit(), "evit", keep_rate=0.3).train()
    vit(images_for(vit)).sum().backward()
    assert all(parameter.grad is not None for parameter in vit.parameters())


def test_needs_a_class_token():
    with pytest.raises(ConfigError, match="no class token, whose attention the method goes by"):
        lfvit.reduce(small_vit("no class token"), "evit")


@pytest.mark.parametrize("keep_rate", [0, -0.1, 1.01, "0.7", None, True, float("nan")])
def test_refuses_a_keep_rate_out_of_range(keep_rate):
    with pytest.raises(ConfigError, match=r"reducer\.keep_rate=.* is out of range"):
        lfvit.reduce(small_vit(), "evit", keep_rate=keep_rate)


@pytest.mark.parametrize("blocks", [[], [2, 2], [3, 2], [6], [1, 6]])
def test_refuses_blocks_the_model_does_not_have(blocks):
    with pytest.raises(ConfigError, match="ascending block numbers from 1 to 5, such as"):
        lfvit.reduce(small_vit(), "evit", blocks=blocks)


@pytest.mark.parametrize("blocks", [[0], [-1], [1.5], ["a"], [True]])
def test_refuses_what_is_no_block_number(blocks):
    with pytest.raises(ConfigError, match=r"reducer\.blocks=.* must be a whole number, 1 or more"):
        lfvit.reduce(small_vit(), "evit", blocks=blocks)


def test_refuses_blocks_that_are_no_list():
    with pytest.raises(ConfigError, match=r"reducer\.blocks=4 must be a list"):
        lfvit.reduce(small_vit(), "evit", blocks=4)


def test_reduces_after_a_quarter_half_and_three_quarters_of_the_depth():
    for depth, expected in ((12, [4, 7, 10]), (16, [5, 9, 13]), (4, [2, 3, 4]), (1, [1])):
        vit = lfvit.reduce(small_vit(depth=depth, grid=(2, 2)), "evit")
        assert [block + 1 for block in vit.blocks.reducer.blocks] == expected


def test_keeps_no_graph_of_what_it_does_not_need():
    vit = lfvit.reduce(small_vit(), "evit", keep_rate=0.5)
    with torch.inference_mode():
        assert vit(images_for(vit)).shape == (2, 5)

"""ToMe against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.models.reducers.tome import match
from reference_reduction import ToMe
from small_vits import KINDS, check_against_reference, images_for, small_vit

TOLERANCE = 1e-5  # log sizes are in float32


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_matches_a_slow_reference(kind):
    check_against_reference(
        small_vit(kind), "tome", lambda: ToMe([2] * 5), tolerance=TOLERANCE, r=2
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["class", "no class token", "distilled", "registers"]),
    heads=st.sampled_from([1, 2, 4]),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    r=st.lists(st.integers(0, 14), min_size=1, max_size=5),
)
def test_matches_a_slow_reference_at_any_size(kind, heads, grid, r):
    """Also where half of the tokens are fewer than r."""
    check_against_reference(
        small_vit(kind, depth=len(r), heads=heads, grid=grid),
        "tome",
        lambda: ToMe(r),
        tolerance=TOLERANCE,
        r=r,
    )


@pytest.mark.parametrize(("share", "r"), [(0.1, 2), (0.25, 4), (0.9, 14), (0.0, 0)])
def test_a_share_of_the_first_length_is_a_number_of_pairs(share, r):
    a = lfvit.reduce(small_vit(), "tome", r=share)
    b = lfvit.reduce(small_vit(), "tome", r=r)
    torch.testing.assert_close(a(images_for(a)), b(images_for(a)), rtol=0, atol=0)


def test_attention_is_not_proportional_on_request():
    class Plain(ToMe):
        def attention(self, block, logits):
            return logits.softmax(-1)

    check_against_reference(small_vit(), "tome", lambda: Plain([3] * 5), r=3, proportional=False)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(2, 15), prefix=st.integers(0, 3), data=st.data())
def test_match_renumbers_every_token_and_merges_the_most_similar(n, prefix, data):
    merged = data.draw(st.integers(1, n // 2))
    generator = torch.Generator().manual_seed(n)
    keys = torch.randn(3, n, 4, generator=generator)
    to = match(keys, merged, prefix)
    in_a = [i for i in range(n) if (prefix + i) % 2 == 0]
    in_b = [i for i in range(n) if (prefix + i) % 2 == 1]
    cosine = torch.nn.functional.cosine_similarity(keys[:, :, None], keys[:, None], dim=-1)
    for image, places in enumerate(to.tolist()):
        assert set(places) == set(range(n - merged))
        assert [places[i] for i in in_b] == list(range(n - merged - len(in_b), n - merged))
        best = {i: max(cosine[image, i, j].item() for j in in_b) for i in in_a}
        gone = [i for i in in_a if places[i] >= n - merged - len(in_b)]
        assert sorted(gone) == sorted(sorted(in_a, key=lambda i: -best[i])[:merged])
        for i in gone:
            partner = next(j for j in in_b if places[j] == places[i])
            assert cosine[image, i, partner].item() == pytest.approx(best[i])


@pytest.mark.parametrize("r", [-1, True, 1.0, 2.5, -0.1, None, float("nan")])
def test_refuses_r_out_of_range(r):
    with pytest.raises(ConfigError, match=r"reducer\.r="):
        lfvit.reduce(small_vit(), "tome", r=r)


@pytest.mark.parametrize("r", [[1, 2], [], [1] * 6, "13"])
def test_refuses_a_list_of_another_length(r):
    with pytest.raises(ConfigError, match=r"reducer\.r=.* needs one number per block: 5"):
        lfvit.reduce(small_vit(), "tome", r=r)


@pytest.mark.parametrize("number", [-1, 1.5, "1", True])
def test_refuses_a_list_of_other_things(number):
    with pytest.raises(ConfigError, match=r"reducer\.r=.* must be a whole number, 0 or more"):
        lfvit.reduce(small_vit(), "tome", r=[1, 1, 1, 1, number])


def test_refuses_a_switch_that_is_none():
    with pytest.raises(ConfigError, match=r"reducer\.proportional='no' must be true or false"):
        lfvit.reduce(small_vit(), "tome", proportional="no")

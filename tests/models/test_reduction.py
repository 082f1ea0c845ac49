"""`lfvit.reduce` and `lfvit.restore`: exact for every reducer and kind of ViT, or refused."""

import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock

import lfvit
from conftest import TINY
from lfvit.errors import ConfigError
from lfvit.models.reducers import REDUCERS
from lfvit.models.reducers.clusters import SoftReducer
from lfvit.models.reduction import forward_tokens, unreduced
from small_vits import KINDS, images_for, possible, randomise, small_vit

RESTORED = ["a_vit", "evo_vit"]  # whose last block has an output for every patch again
KEEP_RATES = [
    name for name, cls in REDUCERS.items() if "keep_rate" in cls.settings_type.model_fields
]
NOTHING = {
    **{name: {"keep_rate": 1} for name in KEEP_RATES},
    "a_vit": {"gate_center": 1e4},
    "tome": {"r": 0},
    "tofu": {"r": 0},
    "frequency": {"removed": 0},
}
"""Settings with which nothing is removed, where there are such settings."""

HALF = {
    **{name: {"keep_rate": 0.6} for name in KEEP_RATES},
    "a_vit": {"gate_scale": 2.0, "gate_center": 1.0},
    "tome": {"r": 3},
    "tofu": {"r": 3},
    "frequency": {"removed": 0.4, "windows": [2, 2, 1]},
}
"""Settings with which much is removed; without an entry here, a reducer's own."""


CASES = [(method, kind) for method in REDUCERS for kind in KINDS if possible(method, kind)]
KNOWN = [case for case in CASES if case[0] in NOTHING]


def reduced(method: str, kind: str = "class", **options):
    vit = lfvit.reduce(small_vit(kind), method, **HALF.get(method, {}))
    randomise(vit.blocks.reducer, seed=5)
    return vit


@pytest.mark.parametrize(("method", "kind"), KNOWN)
def test_removing_nothing_is_the_model_itself(method, kind):
    vit = small_vit(kind)
    images = images_for(vit)
    expected = vit(images)
    lfvit.reduce(vit, method, **NOTHING[method])
    torch.testing.assert_close(vit(images), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", NOTHING)
def test_removing_nothing_trains_as_the_model_itself(method):
    """Dropout and drop path draw the same numbers, and the gradients are the same."""
    options = {"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}
    plain, vit = small_vit(**options).train(), small_vit(**options).train()
    lfvit.reduce(vit, method, **NOTHING[method])
    images = images_for(vit, 4)
    for model in (plain, vit):
        torch.manual_seed(0)
        model(images).square().sum().backward()
    found = dict(vit.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_restore_undoes_reduce_and_neither_touches_a_weight(method, kind):
    vit = small_vit(kind)
    images = images_for(vit)
    before, expected = copy.deepcopy(vit.state_dict()), vit(images)
    assert lfvit.reduce(vit, method, **HALF.get(method, {})) is vit
    own = [name for name in vit.state_dict() if name.startswith("blocks.reducer.")]
    assert sorted(vit.state_dict()) == sorted([*before, *own])
    assert bool(own) == any(True for _ in vit.blocks.reducer.parameters())
    randomise(vit.blocks.reducer, seed=5)
    fused = vit(images)
    assert not torch.allclose(fused, expected)
    set_fused(vit.blocks.originals, False)
    torch.testing.assert_close(vit(images), fused, atol=1e-5, rtol=1e-5)
    set_fused(vit.blocks.originals, True)
    assert lfvit.restore(vit) is vit
    assert list(vit.state_dict()) == list(before)
    assert all(torch.equal(vit.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(vit(images), expected)


def set_fused(blocks, fused):
    for block in blocks:
        assert block.attn.fused_attn != fused
        block.attn.fused_attn = fused


@pytest.mark.parametrize("method", REDUCERS)
def test_copies_and_their_weights_give_the_same_logits(method):
    vit = reduced(method)
    images = images_for(vit)
    expected = vit(images)
    copies = [copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))]
    copies += [lfvit.reduce(small_vit(seed=9), method, **HALF.get(method, {}))]
    copies[-1].load_state_dict(vit.state_dict())
    with torch.no_grad():
        vit.pos_embed += 1  # a copy looks at positions of its own
    for other in copies:
        torch.testing.assert_close(other(images), expected, atol=0, rtol=0)
    torch.testing.assert_close(unreduced(copies[0])(images), small_vit()(images))
    assert hasattr(copies[0].blocks, "reducer")


@pytest.mark.parametrize("method", REDUCERS)
def test_answers_with_the_tokens_behind_the_logits(method):
    vit = reduced(method, "distilled")
    images = images_for(vit)
    logits, tokens, state = forward_tokens(vit, images)
    torch.testing.assert_close(logits, vit(images), atol=0, rtol=0)
    assert tokens.shape[1] == state.num_tokens
    assert (state.num_tokens == state.num_patches) == (method in RESTORED)


def test_ways_around_the_reducer_are_refused():
    vit = reduced("evit")
    images = images_for(vit)
    n = 1 + vit.patch_embed.num_patches
    ways = [
        lambda: list(vit.blocks),
        lambda: vit.blocks[0],
        lambda: vit.blocks[:2],
        lambda: vit.forward_intermediates(images),
        lambda: vit.forward_intermediates(images, indices=[1], stop_early=True),
        lambda: vit.get_intermediate_layers(images),
        lambda: vit.prune_intermediate_layers([1]),
        lambda: vit(images, attn_mask=torch.ones(n, n, dtype=torch.bool)),
        lambda: vit(images, is_causal=True),
        lambda: (vit.set_grad_checkpointing(True), vit(images)),
    ]
    for way in ways:
        with pytest.raises(ConfigError, match=r"do not run one by one.*lfvit\.restore\(model\)"):
            way()
    assert len(vit.blocks) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_fn": ParallelScalingBlock}, "blocks of type ParallelScalingBlock"),
        ({"block_fn": ParallelThingsBlock}, "blocks of type ParallelThingsBlock"),
        ({"block_fn": ResPostBlock}, "blocks of type ResPostBlock"),
        ({"patch_drop_rate": 0.5}, "patch dropout, after which the grid is unknown"),
        ({"dynamic_img_size": True}, "a grid that varies with the image"),
        ({"attn_layer": "diff"}, "with DiffAttention"),
    ],
)
def test_refuses_models_it_cannot_be_exact_on(options, message):
    with pytest.raises(ConfigError, match=f"tome cannot be exact on this .*{message}"):
        lfvit.reduce(small_vit(**options), "tome")


def changed(change):
    vit = small_vit()
    change(vit)
    return vit


REFUSED = {
    "has a reducer already, see lfvit.restore": lambda: reduced("evit"),
    "gradient checkpointing, which runs": lambda: changed(lambda v: v.set_grad_checkpointing(True)),
    "hooks or a forward of their own, which would not run": lambda: changed(
        lambda v: v.blocks[1].register_forward_hook(lambda *_: None)
    ),
    "hooks or a forward of their own, which": lambda: changed(
        lambda v: setattr(v.blocks[2].attn, "forward", lambda x, **_: x)
    ),
    "a ResNet: a VisionTransformer of timm": lambda: timm.create_model("resnet10t", num_classes=2),
    r"pass reducer= to lfvit\.create_model": lambda: lfvit.create_model(
        "lf_vit", backbone=TINY, image_size=112
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_other_models(message):
    with pytest.raises(ConfigError, match=message):
        lfvit.reduce(REFUSED[message](), "tome")


def test_refuses_what_is_unknown_and_leaves_the_model_as_it_was():
    vit = small_vit()
    blocks = vit.blocks
    for method, setting, message in (
        ("tome", {"rate": 0.5}, "reducer.rate is no setting"),
        ("tome", {"name": "evit"}, "reducer.name is no setting"),
        ("evits", {}, "method='evits' is unknown; did you mean evit"),
    ):
        with pytest.raises(ConfigError, match=message):
            lfvit.reduce(vit, method, **setting)
    assert vit.blocks is blocks
    with pytest.raises(ConfigError, match="is not reduced, so nothing can be restored"):
        lfvit.restore(vit)


def test_refuses_a_number_of_patches_it_has_no_grid_for():
    vit = lfvit.reduce(small_vit(pos_embed="none"), "tome")
    vit.patch_embed.strict_img_size = False
    with pytest.raises(ConfigError, match=r"9 patches came in, .* has a grid of 4 x 4"):
        vit(torch.zeros(1, 3, 12, 12, dtype=torch.float64))


SOFT = [name for name, cls in REDUCERS.items() if issubclass(cls, SoftReducer)]


@pytest.mark.parametrize("method", SOFT)
def test_learned_mixtures_are_as_many_as_their_weights_at_most(method):
    vit = reduced(method)
    numbers = []
    for size in ((16, 16), (24, 12), (8, 8)):
        vit.set_input_size(size)
        numbers.append(forward_tokens(vit, images_for(vit)).state.num_tokens)
    assert numbers == [3, 3, 1]  # 0.6^3 of 16, 18 and 4 patches


@pytest.mark.parametrize("method", sorted(set(REDUCERS) - set(SOFT)))
def test_follows_a_new_image_size(method):
    vit = reduced(method)
    vit.set_input_size((24, 12))
    expected = lfvit.restore(copy.deepcopy(vit))
    lfvit.reduce(expected, method, **HALF.get(method, {}))
    expected.load_state_dict(vit.state_dict())
    images = images_for(vit)
    assert images.shape[-2:] == (24, 12)
    torch.testing.assert_close(vit(images), expected(images), atol=0, rtol=0)


@pytest.mark.parametrize("method", [name for name in REDUCERS if not REDUCERS[name].drops])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(grid=st.tuples(st.integers(2, 5), st.integers(2, 5)), seed=st.integers(0, 99))
def test_every_patch_has_a_token_that_stands_for_it(method, grid, seed):
    vit = small_vit(grid=grid, seed=seed)
    lfvit.reduce(vit, method, **HALF.get(method, {}))
    n = grid[0] * grid[1]
    run = vit.blocks.run(vit._pos_embed(vit.patch_embed(images_for(vit, seed=seed))))
    state = run.state
    assert run.tokens.shape[1] == 1 + state.num_tokens
    assert state.num_patches == n
    assert state.source.shape == (2, n)
    assert state.source.min() >= 0
    assert state.source.max() < state.num_tokens
    assert state.size().sum(1).tolist() == [n, n]
    expanded = state.unmerge(run.tokens)
    assert expanded.shape == (2, 1 + n, 16)
    for image in range(2):
        for patch, owner in enumerate(state.source[image].tolist()):
            assert torch.equal(expanded[image, 1 + patch], run.tokens[image, 1 + owner])
    row = torch.rand(2, state.num_tokens) * (state.size() > 0)
    torch.testing.assert_close(state.spread(row).sum(1), row.sum(1))


@pytest.mark.parametrize("method", REDUCERS)
def test_reducers_weights_go_where_the_model_is(method):
    vit = lfvit.reduce(small_vit().train().to("meta", torch.bfloat16), method)
    assert {(p.device.type, p.dtype) for p in vit.parameters()} == {("meta", torch.bfloat16)}
    assert all(module.training for module in vit.modules())
    assert all(module.training for module in lfvit.restore(vit).modules())

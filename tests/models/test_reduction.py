"""`lfvit.reduce` and `lfvit.restore`: exact for every reducer and kind of ViT, or refused."""

import copy
import io
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock

import lfvit
from lfvit.errors import ConfigError
from lfvit.models.blocks import Layout, TokenState, patch_centers
from lfvit.models.reducers import REDUCERS
from lfvit.models.reduction import forward_tokens, unreduced
from small_vits import KINDS, images_for, randomise, small_vit

NOTHING = {
    "evit": {"keep_rate": 1},
    "tome": {"r": 0},
    "frequency": {"removed": 0},
    "dynamic_vit": {"keep_rate": 1},
}
"""Settings with which nothing is removed, where there are such settings."""

HALF = {
    "evit": {"keep_rate": 0.5},
    "tome": {"r": 3},
    "frequency": {"removed": 0.4, "windows": [2, 2, 1]},
    "dynamic_vit": {"keep_rate": 0.6},
}
"""Settings with which much is removed; without an entry here, a reducer's own."""


def possible(method: str, kind: str) -> bool:
    if method == "evit":
        return kind != "no class token"
    return method != "dynamic_vit" or KINDS[kind].get("global_pool") != "avg"


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
    assert bool(own) == (method in ("frequency", "dynamic_vit"))
    assert all(torch.equal(vit.state_dict()[name], value) for name, value in before.items())
    assert not torch.allclose(vit(images), expected)
    assert lfvit.restore(vit) is vit
    assert list(vit.state_dict()) == list(before)
    assert all(torch.equal(vit.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(vit(images), expected)


@pytest.mark.parametrize("method", REDUCERS)
@pytest.mark.parametrize("training", [True, False])
def test_reduce_and_restore_stay_in_the_mode_of_the_model(method, training):
    vit = lfvit.reduce(small_vit().train(training), method)
    assert {module.training for module in vit.modules()} == {training}
    assert {module.training for module in lfvit.restore(vit).modules()} == {training}


@pytest.mark.parametrize("method", REDUCERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_runs_in_the_type_of_the_model(method, dtype, fused):
    vit = small_vit().to(dtype)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    lfvit.reduce(vit, method, **HALF.get(method, {}))
    assert {parameter.dtype for parameter in vit.parameters()} == {dtype}
    for training in (False, True):
        assert vit.train(training)(images_for(vit).to(dtype)).dtype == dtype


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_fused_and_plain_attention_agree(method, kind):
    vit = reduced(method, kind)
    images = images_for(vit)
    fused = vit(images)
    for block in vit.blocks.originals:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    torch.testing.assert_close(vit(images), fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", REDUCERS)
def test_copies_and_saved_weights_give_the_same_logits(method):
    vit = reduced(method)
    images = images_for(vit)
    expected = vit(images)
    for other in (copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))):
        with torch.no_grad():
            vit.pos_embed += 1  # a copy looks at positions of its own
        assert torch.equal(other(images), expected)
        with torch.no_grad():
            vit.pos_embed -= 1
    file = io.BytesIO()
    torch.save(vit.state_dict(), file)
    file.seek(0)
    fresh = lfvit.reduce(small_vit(seed=9), method, **HALF.get(method, {}))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(images), vit(images), atol=0, rtol=0)


@pytest.mark.parametrize("method", REDUCERS)
def test_a_copy_without_its_reducer_is_the_model_itself(method):
    vit = reduced(method)
    images = images_for(vit)
    torch.testing.assert_close(unreduced(vit)(images), small_vit()(images))
    assert hasattr(vit.blocks, "reducer")


@pytest.mark.parametrize("method", REDUCERS)
def test_answers_with_the_tokens_behind_the_logits(method):
    vit = reduced(method, "distilled")
    images = images_for(vit)
    logits, tokens, state = forward_tokens(vit, images)
    torch.testing.assert_close(logits, vit(images), atol=0, rtol=0)
    assert tokens.shape[1] == state.num_tokens < state.num_patches


@pytest.mark.parametrize("method", REDUCERS)
def test_compiles_without_graph_breaks(method):
    vit = lfvit.reduce(small_vit(depth=3), method, **HALF.get(method, {}))
    images = images_for(vit)
    compiled = torch.compile(vit, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), vit(images), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", REDUCERS)
def test_ways_around_the_reducer_are_refused(method):
    vit = reduced(method)
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
@pytest.mark.parametrize("method", REDUCERS)
def test_refuses_models_it_cannot_be_exact_on(method, options, message):
    with pytest.raises(ConfigError, match=f"{method} cannot be exact on this .*{message}"):
        lfvit.reduce(small_vit(**options), method)


def test_refuses_blocks_that_do_more_than_their_class():
    hooked, patched = small_vit(), small_vit()
    handle = hooked.blocks[1].register_forward_hook(lambda *_: None)
    patched.blocks[2].attn.forward = lambda x, **_: x
    for vit in (hooked, patched):
        with pytest.raises(ConfigError, match="hooks or a forward of their own, which would not"):
            lfvit.reduce(vit, "tome")
    handle.remove()
    lfvit.reduce(hooked, "tome")


def test_refuses_gradient_checkpointing():
    vit = small_vit()
    vit.set_grad_checkpointing(True)
    with pytest.raises(ConfigError, match="gradient checkpointing, which runs the blocks one by"):
        lfvit.reduce(vit, "tome")


def test_refuses_other_models():
    resnet = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(ConfigError, match="cannot reduce a ResNet: a VisionTransformer of timm"):
        lfvit.reduce(resnet, "tome")
    with pytest.raises(ConfigError, match="this ResNet is not reduced"):
        lfvit.restore(resnet)


def test_refuses_two_pass_models(tiny):
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=2)
    with pytest.raises(ConfigError, match=r"pass reducer= to lfvit\.create_model"):
        lfvit.reduce(model, "tome")


def test_refuses_a_second_reducer_and_a_second_restoration():
    vit = reduced("tome")
    with pytest.raises(ConfigError, match="has a reducer already, see lfvit.restore"):
        lfvit.reduce(vit, "evit")
    lfvit.restore(vit)
    with pytest.raises(ConfigError, match="is not reduced, so nothing can be restored"):
        lfvit.restore(vit)
    lfvit.reduce(vit, "evit")


@pytest.mark.parametrize("method", REDUCERS)
def test_refuses_what_is_unknown_and_leaves_the_model_as_it_was(method):
    vit = small_vit()
    blocks = vit.blocks
    with pytest.raises(ConfigError, match="reducer.rate is no setting"):
        lfvit.reduce(vit, method, rate=0.5)
    with pytest.raises(ConfigError, match="reducer.name is no setting"):
        lfvit.reduce(vit, method, name="tome")
    with pytest.raises(ConfigError, match="method='evits' is unknown; did you mean evit"):
        lfvit.reduce(vit, "evits")
    assert vit.blocks is blocks


def test_refuses_a_number_of_patches_it_has_no_grid_for():
    vit = lfvit.reduce(small_vit(pos_embed="none"), "tome")
    vit.patch_embed.strict_img_size = False
    with pytest.raises(ConfigError, match=r"9 patches came in, .* has a grid of 4 x 4"):
        vit(torch.zeros(1, 3, 12, 12, dtype=torch.float64))


@pytest.mark.parametrize("method", REDUCERS)
def test_follows_a_new_image_size(method):
    vit = reduced(method)
    vit.set_input_size((24, 12))
    expected = lfvit.restore(copy.deepcopy(vit))
    lfvit.reduce(expected, method, **HALF.get(method, {}))
    expected.load_state_dict(vit.state_dict())
    images = images_for(vit)
    assert images.shape[-2:] == (24, 12)
    torch.testing.assert_close(vit(images), expected(images), atol=0, rtol=0)


@pytest.mark.parametrize("method", sorted(set(REDUCERS) - {"dynamic_vit"}))
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
    vit = lfvit.reduce(small_vit().to("meta"), method)
    assert {parameter.device.type for parameter in vit.parameters()} == {"meta"}


def test_reductions_follow_one_another():
    layout = Layout(patch_centers(torch.arange(4)[None], 2, 2), None)
    state = TokenState(torch.arange(4)[None], 4, 1, layout)
    state = state.remap(torch.tensor([[0, 1, 1, 2]]), 3)
    state = state.remap(torch.tensor([[1, 0, 0]]), 2)
    assert state.source.tolist() == [[1, 0, 0, 0]]
    assert state.size().tolist() == [[3, 1]]
    assert state.spread(torch.tensor([[0.6, 0.4]]))[0].tolist() == pytest.approx([0.4] + [0.2] * 3)
    tokens = torch.tensor([[[9.0], [5.0], [7.0]]])
    assert state.unmerge(tokens)[0, :, 0].tolist() == [9, 7, 5, 5, 5]

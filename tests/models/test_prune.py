"""scripts/prune.py: what stays is what the model's answers need."""

import runpy

import pytest
import torch

import lfvit
from lfvit.models.checkpoints import read_file
from lfvit.utils.paths import CHECKOUT
from small_vits import small_vit

PRUNE = runpy.run_path(str(CHECKOUT / "scripts" / "prune.py"))


@pytest.fixture
def images():
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", ["class", "layer scale", "registers"])
def test_whole_it_answers_as_before(images, kind):
    vit = small_vit(kind)
    before = vit(images)
    assert PRUNE["keep_blocks"](vit, images, 5) == [0, 1, 2, 3, 4]
    for index in range(5):
        assert PRUNE["narrow_mlp"](vit, images, index, 32) < 1e-9
    torch.testing.assert_close(vit(images), before)


def test_blocks_that_add_nothing_go_first(images):
    vit = small_vit()
    for index in (1, 3):
        for layer in (vit.blocks[index].attn.proj, vit.blocks[index].mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    before = vit(images)
    assert PRUNE["keep_blocks"](vit, images, 3) == [0, 2, 4]
    torch.testing.assert_close(vit(images), before)
    assert PRUNE["keep_blocks"](vit, images, 1) in ([0], [1], [2])


def test_hidden_units_go_that_add_nothing_or_what_others_can(images):
    vit = small_vit()
    mlp = vit.blocks[2].mlp
    with torch.no_grad():
        mlp.fc2.weight[:, :8] = 0  # without use
        mlp.fc1.weight[8:16] = mlp.fc1.weight[16:24]  # the same as others
        mlp.fc1.bias[8:16] = mlp.fc1.bias[16:24]
        mlp.fc2.weight[:, 8:16] /= 100  # and of less weight than they are
        mlp.fc1.weight[24:28] = 0  # constant
    before = vit(images)
    assert PRUNE["narrow_mlp"](vit, images, 2, 12) < 1e-9
    torch.testing.assert_close(vit(images), before)
    assert vit.blocks[2].mlp.fc1.out_features == 12
    assert 0.01 < PRUNE["narrow_mlp"](vit, images, 2, 4) < 1


def test_the_command_writes_what_a_training_starts_from(tmp_path, trained_vit, photographs, capsys):
    out = tmp_path / "new" / "slim.safetensors"
    given = ["--images", str(photographs), "--count", "6", "--depth", "2", "--mlp-ratio", "0.5"]
    PRUNE["main"]([str(trained_vit), str(out), *given])
    settings = capsys.readouterr().out.splitlines()[-1].split("backbone.")[1:]
    sizes = {k: v for k, _, v in (setting.strip().partition("=") for setting in settings)}
    assert (sizes["depth"], sizes["mlp_ratio"], sizes["init_values"]) == ("2", "0.5", "null")
    backbone = {k: float(v) for k, v in sizes.items() if v != "null"}
    backbone = {k: int(v) if v == int(v) else v for k, v in backbone.items()} | {"family": "vit"}
    content = read_file(trained_vit)["lfvit"]
    model = lfvit.create_model(
        "lf_vit",
        backbone=backbone,
        image_size=content["image_size"],
        num_classes=len(content["classes"]),
        gca_start=1,
    )
    lfvit.load_checkpoint(model, out)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--depth", "9"], "the model has 4 blocks; pass 1 to 4"),
        (["--mlp-ratio", "5"], "--mlp-ratio 5: 120 of the model's 96 hidden units; pass at most 4"),
        (["--count", "0"], "--count 0: pass 1 or more"),
        (["--mlp-ratio", "0"], "--mlp-ratio 0: 0 of the model's 96 hidden units; pass at most 4"),
    ],
)
def test_sizes_that_the_model_does_not_have_are_refused(
    tmp_path, trained_vit, photographs, capsys, changed, message
):
    out = tmp_path / "slim.safetensors"
    given = ["--images", str(photographs), "--depth", "2", "--mlp-ratio", "1"]
    with pytest.raises(SystemExit):
        PRUNE["main"]([str(trained_vit), str(out), *given, *changed])
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_two_passes_and_existing_files_are_refused(tmp_path, trained_run, photographs, capsys):
    given = ["--images", str(photographs), "--depth", "2", "--mlp-ratio", "1"]
    last = str(trained_run / "checkpoints" / "last.ckpt")
    with pytest.raises(SystemExit):
        PRUNE["main"]([last, str(tmp_path / "slim.safetensors"), *given])
    assert "pass the checkpoint of a plain one-pass ViT (method=vit)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        PRUNE["main"]([last, last, *given])
    assert "pass the name of a new .safetensors file" in capsys.readouterr().err

"""diagnose.py on both kinds of models, on other weights, and on mistakes."""

import csv
import json

import pytest
import torch

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands.diagnose import diagnose
from lfvit.commands.train import train
from lfvit.errors import ConfigError


@pytest.fixture
def run(composed, trained_run, tmp_path):
    def run_diagnose(*overrides, checkpoint=None):
        cfg = composed(
            "diagnose",
            f"ckpt_path={checkpoint or trained_run / 'checkpoints' / 'last.ckpt'}",
            "accelerator=cpu",
            f"run_dir={tmp_path / 'out'}",
            *overrides,
        )
        return diagnose(cfg)

    return run_diagnose


def test_a_two_pass_model(run, tmp_path, capsys):
    found = run("images=10")
    out = tmp_path / "out"
    assert json.loads((out / "diagnose.json").read_text()) == found
    assert found["images"] == 10
    assert list(dict.fromkeys(row["pass"] for row in found["rows"])) == [1, 2]
    with (out / "diagnose.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["rows"]) == 2 * (1 + int(rows[-1]["block"]))
    assert rows[0]["hf_amplitude"] == ""  # no attention before the first block
    assert float(rows[1]["hf_amplitude"]) == found["rows"][1]["hf_amplitude"]
    assert found["rows"][-1]["last_similarity"] == pytest.approx(1)
    for name in ("diagnose.png", "diagnose.svg"):
        assert (out / name).stat().st_size > 10_000
    assert "pass 2, 10 images" in capsys.readouterr().out


def test_the_batch_size_changes_nothing(run):
    one, many = run("batch_size=1")["rows"], run("batch_size=16")["rows"]
    for a, b in zip(one, many, strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_a_one_pass_model(run, composed, tmp_path):
    train(composed("train", *NEEDLE_FAST, "method=vit", f"run_dir={tmp_path / 'vit'}"))
    found = run(checkpoint=tmp_path / "vit" / "checkpoints" / "last.ckpt")
    assert {row["pass"] for row in found["rows"]} == {1}
    assert found["images"] == 16


def test_other_weights_with_a_description(run, photographs, tmp_path):
    model = lfvit.create_model(
        "vit", backbone="deit_tiny_patch16_224", num_classes=3, image_size=64
    )
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    found = run(
        "method=vit",
        "backbone=deit_tiny",
        "image_size=64",
        "data=imagefolder",
        f"data.root={photographs}",
        "removed=0.5",
        checkpoint=tmp_path / "plain.pth",
    )
    assert [row["block"] for row in found["rows"]] == list(range(13))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("removed=1", "removed=1 is not valid"),
        ("removed=0.001", "removed=0.001 of 49 tokens is less than one"),
        ("images=0", "images=0 is not valid"),
    ],
)
def test_mistakes(run, setting, message):
    with pytest.raises(ConfigError, match=message):
        run(setting)

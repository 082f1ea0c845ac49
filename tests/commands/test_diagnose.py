"""diagnose.py on one-pass and two-pass models, and on mistakes."""

import csv
import json

import pytest
import torch

import lfvit
from conftest import TINY
from lfvit.commands.diagnose import diagnose
from lfvit.errors import ConfigError


@pytest.fixture
def run(composed, trained_run, tmp_path):
    def run_diagnose(*overrides, checkpoint=trained_run / "checkpoints" / "last.ckpt"):
        settings = [f"ckpt_path={checkpoint}", "accelerator=cpu", f"run_dir={tmp_path / 'out'}"]
        settings.append("overwrite=true")
        return diagnose(composed("diagnose", *settings, *overrides))

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
    for a, b in zip(run("images=10", "batch_size=1")["rows"], found["rows"], strict=True):
        assert a == pytest.approx(b, abs=1e-3)


def test_a_one_pass_model_and_mistakes(run, trained_vit, tmp_path):
    cascade = lfvit.create_model("dvt", backbone=TINY, image_size=64, num_classes=3)
    torch.save(cascade.state_dict(), tmp_path / "dvt.pth")
    described = ["method=dvt", "backbone=vit_micro", "image_size=64", "data=needle"]
    described += [f"backbone.{key}={value}" for key, value in TINY.items()]
    with pytest.raises(ConfigError, match="method=dvt has more than two passes"):
        run(*described, checkpoint=tmp_path / "dvt.pth")
    found = run(checkpoint=trained_vit)
    assert {row["pass"] for row in found["rows"]} == {1}
    assert found["images"] == 16
    for wrong, message in (("1", "is not valid"), ("0.001", "of 49 tokens is less than one")):
        with pytest.raises(ConfigError, match=f"removed={wrong} {message}"):
            run(f"removed={wrong}")

"""export.py on a trained run, and what it refuses."""

import json
import shutil

import pytest

from conftest import run_script
from lfvit import runtime
from lfvit.commands.export import export
from lfvit.commands.predict import predict
from lfvit.errors import LFViTError


def test_the_command_as_a_user_types_it(
    composed, trained_run, photographs, tmp_path, quick_export, monkeypatch, capfd
):
    """A run directory, whose name need not be UTF-8, stands for its last checkpoint."""
    run = shutil.copytree(trained_run, tmp_path / "caf\udce9")
    monkeypatch.chdir(tmp_path)
    assert run_script("export", str(run), "threshold=0.4") == 0
    out, err = capfd.readouterr()
    assert err == ""
    names = ["model.onnx", "first_pass", "second_pass"]
    assert [line.partition(":")[0] for line in out.splitlines()[:3]] == names
    assert len(out.splitlines()) == 5
    (folder,) = tmp_path.glob("outputs/export/*")
    assert {path.name for path in folder.glob("*.onnx*")} == {"model.onnx"}
    card = json.loads((folder / "model.json").read_text())
    assert max(card["largest_difference"].values()) < 1e-4
    assert card["method"] == "lf_vit"
    assert card["threshold"] == 0.4
    assert (folder / "model.onnx").stat().st_size < 2e6
    image = photographs / "apple" / "00.jpg"
    output = runtime.load(folder).predict(image)
    cfg = composed("predict", f"ckpt_path={trained_run}", "threshold=0.4", "accelerator=cpu")
    cfg.image, cfg.run_dir = str(image), str(tmp_path / "predict")
    (entry,) = predict(cfg)
    assert card["classes"][output.logits.argmax()] == entry["top"][0]["class"]
    assert output.macs[0] / 1e9 == pytest.approx(entry["gmacs"], abs=1e-3)


def test_int8_says_how_often_it_agrees(
    composed, trained_run, photographs, tmp_path, capsys, quick_export
):
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    int8 = [f"ckpt_path={checkpoint}", f"run_dir={tmp_path}", "precision=int8"]
    int8.append(f"calibrate={photographs}")
    card = export(composed("export", *int8, "agreement=0.5"))
    assert json.loads((tmp_path / "model.json").read_text()) == json.loads(json.dumps(card))
    assert card["precision"] == "int8"
    assert set(card["agreement"]) == {"first_pass", "second_pass"}
    assert f"of {card['checked_on']} images as in fp32" in capsys.readouterr().out
    assert len(runtime.load(tmp_path).predict(photographs / "apple" / "00.jpg").logits) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("precision=int8", "calibrate=FOLDER"),
        ("calibrate=photographs", "calibrate=photographs is for precision=int8"),
        ("precision=bf16", "precision='bf16' is unknown; valid: 'fp32' or 'int8'"),
        ("precision=int8 calibrate=none", "calibrate=none: no such file or folder"),
        ("tolerance=0", "tolerance=0 is not valid"),
    ],
)
def test_mistakes_are_answered_before_anything_is_written(
    composed, trained_run, tmp_path, settings, message
):
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    overrides = [f"ckpt_path={checkpoint}", f"run_dir={tmp_path / 'none'}", *settings.split()]
    with pytest.raises(LFViTError, match=message):
        export(composed("export", *overrides))
    assert not (tmp_path / "none").exists()

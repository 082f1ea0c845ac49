"""export.py on a trained run, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from lfvit import runtime
from lfvit.commands.predict import predict


def test_the_command_as_a_user_types_it(composed, trained_run, photographs, tmp_path):
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "export.py"), f"ckpt_path={checkpoint}", "threshold=0.4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    # older versions of onnxscript talk
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Applied ")]
    assert [line.partition(":")[0] for line in lines[:2]] == ["first_pass.onnx", "second_pass.onnx"]
    assert len(lines) == 4
    (folder,) = tmp_path.glob("outputs/export/*")
    card = json.loads((folder / "model.json").read_text())
    assert max(card["largest_difference"].values()) < 1e-4
    assert card["method"] == "lf_vit"
    assert card["threshold"] == 0.4
    assert (folder / "first_pass.onnx").stat().st_size < 2e6
    image = photographs / "apple" / "00.jpg"
    output = runtime.load(folder).predict(image)
    cfg = composed("predict", f"ckpt_path={checkpoint}", "threshold=0.4", "accelerator=cpu")
    cfg.image, cfg.run_dir = str(image), str(tmp_path / "predict")
    (entry,) = predict(cfg)
    assert card["classes"][output.logits.argmax()] == entry["top"][0]["class"]
    assert output.macs[0] / 1e9 == pytest.approx(entry["gmacs"], abs=1e-3)

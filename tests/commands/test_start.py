"""Scripts answer mistakes before PyTorch is imported."""

import json
import subprocess
import sys

import pytest

import lfvit
from conftest import ROOT

PROGRAM = """
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("status", end.code)
heavy = ("torch", "lightning", "timm", "torchvision", "pandas", "scipy", "wandb")
print("imported", [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("train", ["--help"], "method=lf_vit"),
        ("evaluate", ["-h"], "ckpt_path: ???"),
        ("predict", ["help"], "python predict.py ckpt_path=FILE image=FILE_OR_FOLDER"),
        ("diagnose", ["--help"], "reducer=none"),
        ("benchmark", ["--help"], "batch_sizes: [1, 32]"),
        ("export", ["--help"], "tolerance: 1e-4"),
        ("search", ["--help"], "trials: 20"),
        ("reproduce", ["--help"], "artifacts=overview"),
        ("train", ["experiment=typo"], "Could not find 'experiment/typo'"),
        ("train", ["seeed=1"], "there is no setting 'seeed'; did you mean seed?"),
        ("train", ["trainer.max_epochs=0"], "error: trainer.max_epochs=0"),
        ("train", ["schedule.loss=ce"], "error: schedule.loss='ce' is unknown"),
        ("train", ["data.batch_size=0"], "error: data.batch_size=0"),
        ("train", ["method.alpha=3"], "error: method.alpha=3"),
        ("train", ["method.region_size=9"], "error: method.region_size=9 does not fit the 7 x 7"),
        ("evaluate", ["ckpt_path=x", "max_loss=-1"], "error: max_loss=-1"),
    ],
)
def test_a_mistake_is_answered_without_pytorch(tmp_path, script, arguments, expected):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([str(ROOT / f"{script}.py"), *arguments])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout + done.stderr
    assert ("usage: python " in done.stdout) == any("help" in a or a == "-h" for a in arguments)
    assert done.stdout.splitlines()[-1] == "imported []"


def test_the_api_is_listed():
    assert {"create_model", "reduce", "count_macs", "sweep_thresholds"} < set(dir(lfvit))
    assert all(hasattr(lfvit, name) for name in dir(lfvit))


def test_a_prediction_takes_neither_lightning_nor_scipy(photographs, tmp_path):
    """They take a second and a half of processor time to import."""
    arguments = [str(ROOT / "predict.py"), f"image={photographs}/apple/00.jpg", "pictures=false"]
    arguments += ["accelerator=cpu", f"run_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 images, 0 skipped" in done.stdout
    imported = done.stdout.splitlines()[-1]
    assert "'torch'" in imported
    assert not any(name in imported for name in ("lightning", "scipy", "pandas"))

"""Scripts answer mistakes before PyTorch is imported."""

import json

import lfvit
from conftest import ROOT, run_python

PROGRAM = """
import json, runpy, sys
from hydra.core.global_hydra import GlobalHydra
for sys.argv in json.loads(sys.argv[1]):
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
    for stream in (sys.stdout, sys.stderr):
        print("-----", file=stream)
heavy = ("torch", "lightning", "timm", "torchvision", "pandas", "scipy", "wandb")
print("imported", [name for name in heavy if name in sys.modules])
"""
ANSWERED = [
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
    ("train", ["schedule.loss=ce"], "error: schedule.loss='ce' is unknown"),
    ("train", ["data.batch_size=0"], "error: data.batch_size=0"),
    ("train", ["method.alpha=3"], "error: method.alpha=3"),
    ("evaluate", ["ckpt_path=x", "max_loss=-1"], "error: max_loss=-1"),
]


def run(cwd, *commands):
    """What each printed and its messages, and the line that says what was imported."""
    done = run_python("-c", PROGRAM, json.dumps(commands), cwd=cwd)
    *printed, imported = done.stdout.split("-----\n")
    return list(zip(printed, done.stderr.split("-----\n"), strict=False)), imported


def test_mistakes_are_answered_without_pytorch(tmp_path):
    commands = [(str(ROOT / f"{script}.py"), *words) for script, words, _ in ANSWERED]
    answers, imported = run(tmp_path, *commands)
    assert imported == "imported []\n"
    for (script, words, expected), (out, err) in zip(ANSWERED, answers, strict=True):
        assert expected in out + err, (script, words)
        assert ("usage: python " in out) == ("=" not in words[0])


def test_the_api_is_listed():
    assert {"create_model", "reduce", "count_macs", "sweep_thresholds"} < set(dir(lfvit))
    assert all(hasattr(lfvit, name) for name in dir(lfvit))


def test_a_prediction_takes_neither_lightning_nor_scipy(photographs, tmp_path):
    """They take a second and a half of processor time to import."""
    command = [str(ROOT / "predict.py"), f"image={photographs}/apple/00.jpg", "pictures=false"]
    command += ["accelerator=cpu", f"run_dir={tmp_path}"]
    ((out, _),), imported = run(tmp_path, command)
    assert "1 images, 0 skipped" in out
    assert "'torch'" in imported
    assert not any(name in imported for name in ("lightning", "scipy", "pandas"))

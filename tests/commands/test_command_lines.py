"""The scripts as a user types them: in a process of their own, or in ours where it says as much."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from conftest import NEEDLE_FAST, ROOT, write_photographs
from lfvit.results.collect import collect
from lfvit.results.page import write_page


def run(script, *arguments, cwd, status=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == status, done.stderr[-2000:]
    return done


def test_a_training_outlives_its_reader_and_what_others_left_in_the_environment(tmp_path):
    read, write = os.pipe()
    os.close(read)
    settings = [
        *NEEDLE_FAST,
        "callbacks.progress._target_=lightning.pytorch.callbacks.RichProgressBar",
    ]
    settings.remove("callbacks.progress=null")
    left = {"RANK": "3", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            *settings,
            "evaluate=true",
            "hydra.run.dir=n\u00e9",
        ],
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **left},
        check=False,
    )
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"ignored: RANK, SLURM_NTASKS; neither")
    assert {"metrics.json", "train.log"} <= {path.name for path in (tmp_path / "n\u00e9").iterdir()}
    assert (tmp_path / "n\u00e9" / "evaluation" / "evaluate.json").exists()


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    """A script in this process, which has imported everything already; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run_here(script, *arguments, status=0):
        GlobalHydra.instance().clear()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [str(ROOT / f"{script}.py"), *arguments])
        ended = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            ended = int(end.code or 0)
        printed = capfd.readouterr()
        assert ended == status, printed.err[-2000:]
        return printed

    yield run_here
    GlobalHydra.instance().clear()
    root.handlers[:], root.level = handlers, level  # Hydra sets its own


def only(path, pattern):
    (found,) = path.glob(pattern)
    return found


def test_a_folder_of_photographs_from_training_to_prediction(tmp_path, here):
    """Another folder, mixed sizes and modes, no split: only data.root is said."""
    photos = write_photographs(tmp_path / "photos")
    run(
        "train",
        "experiment=imagenette_small",
        f"data.root={photos}",
        "image_size=64",
        "data.batch_size=8",
        "data.num_workers=0",
        "trainer.max_epochs=2",
        "lr_scheduler.warmup_epochs=0",
        "trainer.precision=32-true",
        cwd=tmp_path,
    )
    trained = only(tmp_path, "outputs/imagenette_small/*")
    assert json.loads((trained / "metrics.json").read_text())["steps"] == 4
    checkpoint = trained / "checkpoints" / "last.ckpt"
    here("evaluate", f"ckpt_path={checkpoint}", "data.num_workers=0")
    found = json.loads(only(tmp_path, "outputs/evaluate/*/evaluate.json").read_text())
    assert found["images"] == 3
    out = here("predict", f"ckpt_path={checkpoint}", f"image={photos / 'pear'}").out
    assert "8 images, 0 skipped" in out
    assert out.count("GMACs") == 8
    assert any(name in out for name in ("apple", "pear", "plum"))
    out = here("diagnose", f"ckpt_path={checkpoint}", "data.num_workers=0").out
    assert "pass 2, 3 images" in out
    assert only(tmp_path, "outputs/diagnose/*/diagnose.svg").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.accelerator=quantum"], "trainer: You selected an invalid"),
        (["method.alhpa=1"], "method has no setting 'alhpa'; did you mean alpha? valid: alpha,"),
        (["method=lfvit"], "Could not find 'method/lfvit'"),
        (["epochs=3"], "there is no setting 'epochs'"),
        (["method.region_size=9"], "region_size=9 does not fit the 7 x 7 grid of image_size=112"),
        (["data=imagefolder"], "pass data.root=DIR"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(here, arguments, message):
    err = here("train", *arguments, status=2).err
    assert message in err
    assert "Traceback" not in err


def test_a_missing_setting_is_named(here):
    err = here("evaluate", status=2).err
    assert "ckpt_path is not set; pass ckpt_path=" in err
    err = here("diagnose", "ckpt_path=x", "remove=0.5", status=2).err
    assert "there is no setting 'remove'; did you mean removed?" in err


def test_paths_may_hold_what_hydra_reads_as_grammar(tmp_path, trained_run, here):
    strange = tmp_path / "epoch=1, (last) [it's] #n\u00e9 \udce9"
    shutil.copytree(trained_run, strange)
    photos = write_photographs(strange / "x=1", per_class=1)
    checkpoint = f"ckpt_path={strange / 'checkpoints' / 'last.ckpt'}"
    found = here("predict", checkpoint, f"image={photos / 'pear' / '00.jpg'}")
    assert "1 images, 0 skipped" in found.out
    images = [str(photos / name / "00.jpg") for name in ("apple", "pear")]
    found = here("predict", *images, f"ckpt_path={strange}", "pictures=false")
    assert "2 images, 0 skipped" in found.out


@pytest.mark.parametrize("folder", [".", "checkpoints"])
@pytest.mark.parametrize("script", ["evaluate", "export", "diagnose"])
def test_a_run_directory_stands_for_its_last_checkpoint(
    tmp_path, trained_run, here, script, folder
):
    """Whose name need not be UTF-8; that of what is written has to be."""
    run = shutil.copytree(trained_run, tmp_path / "caf\udce9")
    cpu = {"evaluate": ["trainer=cpu"], "diagnose": ["accelerator=cpu"], "export": []}[script]
    here(script, str(run / folder), *cpu, "hydra.run.dir=out")
    if script == "evaluate":
        evaluation = json.loads((tmp_path / "out" / "evaluate.json").read_text())
        assert evaluation["checkpoint"] == str(tmp_path / "caf\\xe9/checkpoints/last.ckpt")
        write_page(collect([tmp_path / "out"]), tmp_path / "page.html")
        message = here(script, str(run), *cpu, "hydra.run.dir=caf\udce9/new", status=2).err
        assert "caf\\xe9/new: its name is not UTF-8; pass another hydra.run.dir" in message

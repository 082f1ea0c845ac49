"""The scripts as a user types them: in this process, where that does not matter."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import NEEDLE_FAST, ROOT, run_script, write_photographs
from lfvit.results.collect import collect
from lfvit.results.page import write_page


def test_a_training_outlives_its_reader_and_what_others_left_in_the_environment(tmp_path):
    read, write = os.pipe()
    os.close(read)
    progress = "callbacks.progress._target_=lightning.pytorch.callbacks.RichProgressBar"
    settings = [progress if o == "callbacks.progress=null" else o for o in NEEDLE_FAST]
    settings += ["trainer.max_epochs=1", "evaluate=true", "hydra.run.dir=n\u00e9"]
    left = {"RANK": "3", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings],
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
    """A script in a folder of its own; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_here(script, *arguments, status=0):
        capfd.readouterr()
        ended = run_script(script, *arguments)
        printed = capfd.readouterr()
        assert ended == status, printed.err[-2000:]
        return printed

    return run_here


def only(path, pattern):
    (found,) = path.glob(pattern)
    return found


def test_a_folder_of_photographs_from_training_to_prediction(tmp_path, here):
    """Another folder, mixed sizes and modes, no split: only data.root is said."""
    photos = write_photographs(tmp_path / "photos")
    small = ["backbone.depth=2", "method.gca_start=1", "image_size=64", "data.batch_size=8"]
    short = ["trainer=cpu", "trainer.max_epochs=2", "lr_scheduler.warmup_epochs=0"]
    here("train", "experiment=imagenette_small", f"data.root={photos}", *small, *short)
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
    ("script", "arguments", "message"),
    [
        ("train", ["trainer.accelerator=quantum"], "trainer: You selected an invalid"),
        ("train", ["method.alhpa=1"], "method.alhpa is no setting; did you mean alpha? valid:"),
        (
            "train",
            ["data=imagefolder", "data.root=x", "data.train_images=8"],
            "data.train_images is no setting",
        ),
        ("evaluate", [], "ckpt_path is not set; pass ckpt_path="),
        ("diagnose", ["ckpt_path=x", "remove=0.5"], "no setting 'remove'; did you mean removed?"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(here, script, arguments, message):
    err = here(script, *arguments, status=2).err
    assert message in err
    assert "Traceback" not in err


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


def test_a_run_directory_stands_for_its_last_checkpoint(tmp_path, trained_run, here):
    """Whose name need not be UTF-8; that of what is written has to be."""
    run = shutil.copytree(trained_run, tmp_path / "caf\udce9")
    here("diagnose", str(run / "checkpoints"), "accelerator=cpu", "images=4")
    here("evaluate", str(run), "trainer=cpu", "hydra.run.dir=out")
    evaluation = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert evaluation["checkpoint"] == str(tmp_path / "caf\\xe9/checkpoints/last.ckpt")
    write_page(collect([tmp_path / "out"]), tmp_path / "page.html")
    message = here("evaluate", str(run), "hydra.run.dir=caf\udce9/new", status=2).err
    assert "caf\\xe9/new: its name is not UTF-8; pass another hydra.run.dir" in message

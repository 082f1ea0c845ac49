"""The scripts as a user types them, in a process of their own."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import NEEDLE_FAST, ROOT, write_photographs


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


def only(path, pattern):
    (found,) = path.glob(pattern)
    return found


def test_a_folder_of_photographs_from_training_to_prediction(tmp_path):
    """Another folder, mixed sizes and modes, no split: only data.root is said."""
    photos = write_photographs(tmp_path / "photos")
    run(
        "train",
        "experiment=imagenette_small",
        f"data.root={photos}",
        "image_size=64",
        "data.batch_size=8",
        "data.num_workers=0",
        "schedule.epochs=2",
        "schedule.warmup_epochs=0",
        "trainer.precision=32-true",
        cwd=tmp_path,
    )
    trained = only(tmp_path, "outputs/imagenette_small/*")
    assert json.loads((trained / "metrics.json").read_text())["steps"] == 4
    checkpoint = trained / "checkpoints" / "last.ckpt"
    out = run("evaluate", f"ckpt_path={checkpoint}", "data.num_workers=0", cwd=tmp_path).stdout
    assert "both passes" in out
    found = json.loads(only(tmp_path, "outputs/evaluate/*/evaluate.json").read_text())
    assert found["images"] == 3
    out = run("predict", f"ckpt_path={checkpoint}", f"image={photos / 'pear'}", cwd=tmp_path).stdout
    assert "8 images, 0 unreadable" in out
    assert out.count("GMACs") == 8
    assert any(name in out for name in ("apple", "pear", "plum"))
    out = run("diagnose", f"ckpt_path={checkpoint}", "data.num_workers=0", cwd=tmp_path).stdout
    assert "second pass, whole image fine, 3 images" in out
    assert only(tmp_path, "outputs/diagnose/*/diagnose.svg").stat().st_size > 10_000


def test_a_sweep_gives_every_job_its_own_directory(tmp_path):
    run(
        "train",
        "-m",
        "method.region_size=3,5",
        "method.alpha=0.5,1.0",
        *NEEDLE_FAST,
        "schedule.epochs=1",
        cwd=tmp_path,
    )
    runs = sorted(tmp_path.glob("outputs/train/*/*/metrics.json"))
    assert [path.parent.name for path in runs] == ["0", "1", "2", "3"]
    costs = [json.loads(path.read_text())["gmacs"] for path in runs]
    assert costs == sorted(costs)
    assert len(set(costs)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer=gpu", "trainer.accelerator=quantum"], "trainer: You selected an invalid"),
        (["method.alhpa=1"], "method has no setting 'alhpa'; did you mean alpha? valid: alpha,"),
        (["method=lfvit"], "Could not find 'method/lfvit'"),
        (["epochs=3"], "there is no setting 'epochs'"),
        (["method.region_size=9"], "region_size=9 does not fit the 7 x 7 grid of image_size=112"),
        (["data=imagefolder"], "data.root is not set"),
        (["-m", "trainer.devices=2"], "trainer.devices=2 in a multirun"),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(tmp_path, arguments, message):
    done = run("train", *arguments, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_setting_is_named(tmp_path):
    done = run("evaluate", cwd=tmp_path, status=2)
    assert "ckpt_path is not set; pass ckpt_path=" in done.stderr
    done = run("diagnose", "ckpt_path=x", "remove=0.5", cwd=tmp_path, status=2)
    assert "there is no setting 'remove'; did you mean removed?" in done.stderr


def test_paths_may_hold_what_hydra_reads_as_grammar(tmp_path, trained_run):
    strange = tmp_path / "epoch=1, (last) [a]"
    shutil.copytree(trained_run / "checkpoints", strange)
    photos = write_photographs(strange / "x=1", per_class=1)
    checkpoint = f"ckpt_path={strange / 'last.ckpt'}"
    done = run("predict", checkpoint, f"image={photos / 'pear' / '00.jpg'}", cwd=tmp_path)
    assert "1 images, 0 unreadable" in done.stdout
    missing = run("predict", "ckpt_path=a=b.ckpt", "image=x", cwd=tmp_path, status=2)
    assert "quote the value: \"ckpt_path='a=b.ckpt'\"" in missing.stderr


PHOTOGRAPHS_FAST = (
    "data.num_workers=0",
    "data.batch_size=4",
    "image_size=128",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "trainer.check_val_every_n_epoch=1",
    "callbacks.progress=null",
)


def test_reproduce_does_not_touch_what_it_did_not_write(tmp_path):
    precious = tmp_path / "outputs/reproduce/smoke/runs/lf_vit/seed0/precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    for fresh in ("true", "false"):
        done = run("reproduce", "artifacts=overview", f"fresh={fresh}", cwd=tmp_path, status=2)
        assert "holds something else than this run" in done.stderr
    assert precious.read_text() == "mine"


def test_reproduce_on_photographs_continues(tmp_path, photographs):
    arguments = [
        "scale=imagenette_cpu",
        "scale.seeds=[0]",
        f"data_root={photographs}",
        "artifacts='lf_vit_table7 overview'",
        f"overrides={json.dumps(PHOTOGRAPHS_FAST)}",
        "scale.speed_images=2",
    ]
    first = run("reproduce", *arguments, cwd=tmp_path).stdout
    assert first.count("trained in") == 3
    out = tmp_path / "outputs/reproduce/imagenette_cpu"
    names = json.loads((out / "artifacts/index.json").read_text())
    assert names == ["overview", "lf_vit_table7"]
    assert (out / "artifacts/overview/examples.png").stat().st_size > 1000
    second = run("reproduce", *arguments, cwd=tmp_path).stdout
    assert second.count("already done") == 3
    assert "trained in" not in second

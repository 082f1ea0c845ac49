"""The scripts as a user types them, in a process of their own."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

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


def test_reproduce_does_not_touch_what_it_did_not_write(tmp_path):
    precious = tmp_path / "outputs" / "reproduce" / "lf_vit" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    for fresh in ("true", "false"):
        done = run("reproduce", f"fresh={fresh}", cwd=tmp_path, status=2)
        assert "holds something else than this run" in done.stderr
    assert precious.read_text() == "mine"


FAST_RUNS = [
    "examples=2",
    "speed_images=4",
    "speed_repeats=1",
    f"overrides={json.dumps([o for o in NEEDLE_FAST if not o.startswith('trainer')])}",
]


def test_reproduce_compares_and_continues(tmp_path):
    arguments = FAST_RUNS
    first = run("reproduce", *arguments, cwd=tmp_path).stdout
    out = tmp_path / "outputs" / "reproduce"
    names = ("table.md", "table.csv", "accuracy_vs_gmacs.png", "examples.png")
    for name in (*names, "accuracy_vs_gmacs.svg"):
        assert (out / name).stat().st_size > 100
    assert len((out / "table.csv").read_text().splitlines()) == 5
    assert "trained in" in first
    second = run("reproduce", *arguments, cwd=tmp_path).stdout
    assert second.count("already done") == 2
    assert "trained in" not in second


def test_reproduce_compares_every_method_on_photographs(tmp_path, photographs):
    """Some start from others' weights, in whatever order they are listed."""
    shrink = [o for o in NEEDLE_FAST if o.startswith(("schedule", "backbone", "callbacks"))]
    run(
        "reproduce",
        "runs=all",
        "data=imagefolder",
        f"data.root={photographs}",
        "data.num_workers=0",
        "data.batch_size=4",
        "augment=light",
        "examples=2",
        "speed_images=2",
        "speed_repeats=1",
        f"overrides={json.dumps([*shrink, 'schedule.epochs=1'])}",
        cwd=tmp_path,
    )
    out = tmp_path / "outputs" / "reproduce"
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = list(yaml.safe_load((ROOT / "conf" / "runs" / "all.yaml").read_text()))
    assert list(dict.fromkeys(row["model"] for row in rows)) == names
    assert all(float(row["gmacs"]) > 0 and float(row["images_per_second"]) > 0 for row in rows)
    cost = {row["model"]: float(row["cost"]) for row in rows if row["run"] == "one pass"}
    assert cost["vit"] == 1
    assert all(cost[name] < 1 for name in ("evit", "tome", "frequency", "dynamic_vit"))
    text = (out / "table.md").read_text()
    assert "- tome: the weights of vit with reducer=tome, not trained further" in text
    assert "claims are made on photographs" not in text
    assert not (out / "tome" / "checkpoints").exists()

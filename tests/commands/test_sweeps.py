"""Sweeps as a user types them: what is done, skipped, continued and listed."""

import json
import os
import re
import shlex
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from conftest import NEEDLE_FAST, ROOT, run_python, run_script
from interruptions import signal_at
from lfvit.commands import jobs
from lfvit.results.collect import collect
from lfvit.utils.atomic_io import read_json

FAST = (
    *NEEDLE_FAST,
    "data.train_images=16",
    "data.val_images=8",
    "trainer.max_epochs=1",
    "lr_scheduler.warmup_epochs=0",
    "logger=none",
)
SMALL = ("method.region_size=3", "method.alpha=0.5", "seed=0")
COMMANDS = [
    line
    for line in (ROOT / "docs" / "sweeps.md").read_text().splitlines()
    if line.startswith("python ")
]


@pytest.fixture
def train(tmp_path, monkeypatch, without_plots):
    """`python train.py ...` in a folder of its own; the exit status."""
    monkeypatch.chdir(tmp_path)
    return partial(run_script, "train")


def documented(text: str) -> list[str]:
    """The arguments of the command in docs/sweeps.md that contains this text."""
    (line,) = (line for line in COMMANDS if text in line)
    return shlex.split(line)[2:]


def newest_sweep(name: str = "train") -> list[dict]:
    """The jobs of the latest sweep, from its sweep.json."""
    path = sorted(Path().glob(f"outputs/{name}/*/sweep.json"))[-1]
    return json.loads(path.read_text())["jobs"]


def configured(evaluation: dict) -> dict:
    """The operating point at the threshold of the config."""
    (point,) = (p for p in evaluation["operating_points"] if p["rule"] == "threshold")
    return point


def statuses(found: list[dict]) -> Counter:
    return Counter(job["status"] for job in found)


def trainings() -> list[Path]:
    return sorted(Path().glob("outputs/train/*/*/metrics.json"))


def test_four_jobs_one_of_which_fails(train, monkeypatch, capfd):
    """Three rows and a clear list; the same command again does what is missing."""
    sweep = (*documented("method.region_size=4,5,6 "), *FAST, "threshold=0.7")
    sweep += ("method.region_size=4,5", "seed=1")

    def crash(cfg):
        if (cfg.method.region_size, cfg.method.alpha) == (5, 0.5):
            raise RuntimeError("out of luck")
        return original(cfg)

    original = jobs.train
    monkeypatch.setattr(jobs, "train", crash)
    assert train(*sweep) == 1
    out, err = capfd.readouterr()
    assert "4 jobs: 3 trained, 1 failed" in out
    assert "in crash" in out  # the traceback of what is no mistake of the user
    assert "error: job 2: RuntimeError: out of luck" in err
    found = newest_sweep()
    assert [job["job"] for job in found] == list(range(4))
    rows = [job for job in found if job["status"] == "trained"]
    for job in rows:
        evaluation = json.loads(Path(job["evaluation"]).read_text())
        assert Path(evaluation["checkpoint"]).samefile(f"{job['directory']}/checkpoints/last.ckpt")
        assert len(evaluation["curve"]) > 10
        point = configured(evaluation)
        for name in ("top1", "gmacs", "threshold", "exit_fraction"):
            assert job[name] == point[name] is not None
    assert len({job["directory"] for job in rows}) == 3
    assert len({job["gmacs"] for job in rows}) == 3
    assert found[2]["top1"] is None
    table = next(Path().glob("outputs/train/*/sweep.md")).read_text().splitlines()
    assert sum(line.startswith("| ") and "trained" in line for line in table) == 3
    assert any("method.region_size=5 method.alpha=0.5 | failed" in line for line in table)
    collected = collect([Path("outputs")])
    assert {run.folder for run in collected.runs} == {
        Path(job["evaluation"]).resolve().parent for job in rows
    }
    assert len(collected.runs) == 3
    place = Path(found[2]["directory"]).as_posix()
    assert collected.skipped == [(place, "failed: RuntimeError: out of luck")]
    made = {path: path.stat().st_mtime_ns for path in trainings()}
    assert len(made) == 3
    monkeypatch.setattr(jobs, "train", original)
    assert train(*sweep) == 0
    assert [job["status"] for job in newest_sweep()].index("trained") == 2
    assert statuses(newest_sweep()) == {"already done": 3, "trained": 1}
    again = [job["evaluation"] for job in newest_sweep()]
    assert [again[job["job"]] for job in rows] == [job["evaluation"] for job in rows]
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert len(trainings()) == 4
    last = max(Path("outputs/train").iterdir())  # three of its jobs found theirs in the first
    assert len(collect([last]).runs) == 4
    both = collect([Path("outputs")])
    assert (len(both.runs), both.skipped) == (4, collected.skipped)


def test_a_larger_sweep_trains_what_is_missing(train):
    assert train(*documented("method.region_size=3,4,5,6"), *FAST, *SMALL) == 0
    assert train(*documented("method.region_size=3,4,5,6"), *FAST, *SMALL, "seed=0,1") == 0
    assert [job["status"] for job in newest_sweep()] == ["already done", "trained"]


def test_a_sweep_of_thresholds_trains_once(train):
    assert train(*documented("threshold="), *FAST) == 0
    found = newest_sweep()
    assert [job["status"] for job in found] == ["trained", "evaluated", "evaluated"]
    assert len(trainings()) == 1
    assert [job["threshold"] for job in found] == [0.5, 0.6, 0.7]
    files = [json.loads(Path(job["evaluation"]).read_text()) for job in found]
    assert len({job["evaluation"] for job in found}) == 3
    assert [configured(file)["threshold"] for file in files] == [0.5, 0.6, 0.7]
    assert files[0]["curve"] == files[1]["curve"]
    collected = collect([Path("outputs")])
    assert collected.skipped == []
    assert {run.name for run in collected.runs} == {
        f"LF-ViT, threshold={eta}" for eta in (0.5, 0.6, 0.7)
    }
    own = collected.table[collected.table["rule"] == "threshold"]
    assert sorted(own["threshold"]) == [0.5, 0.6, 0.7]
    assert train("-m", "threshold=0.6,0.8", *FAST) == 0
    assert [job["status"] for job in newest_sweep()] == ["already done", "evaluated"]


def test_repeating_is_the_rule_for_single_runs_and_a_choice_for_sweeps(train):
    for arguments in (["seed=1"], ["seed=1"], ["-m", "seed=1"], documented("repeat=true")):
        assert train(*arguments, *FAST) == 0
    runs = [json.loads(path.read_text()) for path in Path().rglob("run.json")]
    # two single runs, nothing in the sweep, two repeated jobs
    assert sorted(Counter(run["identity"] for run in runs).values()) == [1, 3]
    assert all(run["status"] == "done" for run in runs)
    assert [job["status"] for job in newest_sweep()] == ["trained", "trained"]
    evaluations = [*Path().rglob("evaluate.json")]
    assert train(*documented("repeat=false"), *FAST) == 0
    assert len([*Path().rglob("run.json")]) == 4
    assert [*Path().rglob("evaluate.json")] == evaluations


def test_what_fails_after_its_training_is_not_trained_again(train, monkeypatch):
    monkeypatch.setattr("lfvit.commands.evaluate.evaluate", lambda cfg: 1 / 0)
    assert train("-m", "seed=0", *FAST) == 1
    assert train("-m", "seed=0", "evaluate=false", *FAST) == 0
    assert [job["status"] for job in newest_sweep()] == ["already done"]
    assert newest_sweep()[0]["evaluation"] is None
    assert newest_sweep()[0]["top1"] is not None


def test_a_killed_sweep_goes_on_where_it_was(train, tmp_path):
    """kill -9 in the middle of job 1: job 0 is found, job 1 continued in place."""
    killed = signal_at(signal.SIGKILL, 3, tmp_path / "once")
    sweep = ("-m", "seed=0,1", *FAST, "trainer.max_epochs=2", "callbacks.last.every_n_steps=1")
    (tmp_path / "once").touch()  # job 0 is made before
    assert train("-m", "seed=0", *sweep[2:], *killed) == 0
    (tmp_path / "once").unlink()
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])  # of interruptions.py
    command = (ROOT / "train.py", *sweep, *killed)
    run_python(*command, cwd=tmp_path, status=-signal.SIGKILL, PYTHONPATH=path)
    (folder,) = (path.parent for path in Path().glob("outputs/train/*/1/run.json"))
    assert read_json(folder / "run.json")["status"] == "running"
    assert not (folder / "metrics.json").exists()
    assert train(*sweep, *killed) == 0
    found = newest_sweep()
    assert [job["status"] for job in found] == ["already done", "continued"]
    assert Path(found[1]["directory"]) == folder
    assert read_json(folder / "metrics.json")["epochs"] == 2
    assert (folder / "evaluation" / "evaluate.json").exists()
    assert len(trainings()) == 2


def test_no_job_writes_into_the_directory_of_another(train, capfd):
    assert train("-m", "seed=0", "hydra.sweep.dir=outputs/mine", *FAST) == 0
    before = Path("outputs/mine/0/config.yaml").read_text()
    assert train("-m", "seed=1,0", "hydra.sweep.dir=outputs/mine", *FAST) == 1
    assert "outputs/mine/0 holds results (checkpoints/best.ckpt, " in capfd.readouterr().err
    assert Path("outputs/mine/0/config.yaml").read_text() == before
    found = json.loads(Path("outputs/mine/sweep.json").read_text())["jobs"]
    assert [job["status"] for job in found] == ["failed", "already done"]


def test_other_commands_can_be_swept_too(train, trained_run):
    weights = trained_run / "checkpoints" / "last.ckpt"
    paths = f"ckpt_path={weights},nowhere.ckpt"
    assert run_script("evaluate", "-m", paths, "data.num_workers=0") == 1
    found = newest_sweep("evaluate")
    assert [job["status"] for job in found] == ["done", "failed"]
    assert found[0]["top1"] is not None
    assert "nowhere.ckpt" in found[1]["error"]


def test_a_job_on_several_devices_is_a_command_of_its_own(train, monkeypatch):
    """Whose processes start that command again, not the sweep; configs of one's own reach it."""
    commands, call = [], jobs.call
    monkeypatch.setattr(jobs, "call", lambda command: commands.append(command) or call(command))
    Path("my/experiment").mkdir(parents=True)
    Path("my/experiment/mine.yaml").write_text("# @package _global_\nname: mine\n")
    own = ("--config-dir=my", "-m", "experiment=mine")
    assert train(*own, *FAST, "trainer.devices=2", "seed=0") == 0
    (job,) = newest_sweep("mine")
    assert job["status"] == "trained"
    ((_, *start, overrides),) = [(*command[:4], command[4:]) for command in commands]
    assert start == ["-m", "lfvit", "train"]
    assert {"++trainer.devices=2", "seed=0", "repeat=true", "evaluate=false"} < set(overrides)
    assert Path(job["evaluation"]).exists()


def test_sweeps_in_several_processes_are_refused(train, monkeypatch, capfd):
    assert train("-m", "trainer.num_nodes=2", *FAST) == 1
    assert "error: job 0: trainer.num_nodes=2 needs a process for every device" in (
        capfd.readouterr().err
    )
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("lfvit.cli.join_launched", lambda command: [])
    monkeypatch.setattr("lfvit.cli.all_ended", lambda: None)
    assert train("-m", *FAST) == 2
    assert "a multirun in 4 processes" in capfd.readouterr().err
    assert trainings() == []


def test_jobs_side_by_side_take_turns_on_the_same_training(train, capfd):
    """Two processes, two thresholds of one training at the same time, and a job that fails."""
    swept = ("method.region_size=4,9", "threshold=0.2,0.3")
    assert train(*documented("launcher=joblib"), *swept, *FAST) == 1
    found = newest_sweep()
    assert statuses(found[:2]) == {"trained": 1, "evaluated": 1}
    assert statuses(found[2:]) == {"failed": 2}
    assert [job["threshold"] for job in found[:2]] == [0.2, 0.3]
    assert len(trainings()) == 1
    assert "error: jobs 2, 3: method.region_size=9 does not fit" in capfd.readouterr().err


SLURM = {
    "sbatch": """#!/usr/bin/env bash
cp "$1" "$CLUSTER/submission.sh"
export SLURM_JOB_ID=77 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_NNODES=1 SLURM_JOB_NODELIST=localhost SLURM_JOB_NAME=lfvit
run() {
    bash "$1"
    while [[ -e $CLUSTER/queued ]]; do
        rm "$CLUSTER/queued"
        bash "$1"
    done
    touch "$CLUSTER/ended"
}
run "$1" > "$CLUSTER/log" 2>&1 < /dev/null &
echo "Submitted batch job 77"
""",
    "scontrol": """#!/usr/bin/env bash
echo "$@" | tee -a "$CLUSTER/asked" > "$CLUSTER/queued"
""",
    "srun": """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    if [[ $1 == --output || $1 == --error ]]; then shift; fi
    shift
done
exec "$@"
""",
    "sacct": """#!/usr/bin/env bash
echo 'JobID|State|NodeList'
if [[ -e $CLUSTER/ended ]]; then echo '77|COMPLETED|here'; else echo '77|RUNNING|here'; fi
""",
}
"""A cluster of one machine: the commands that submitit calls."""


def test_a_job_on_slurm_that_is_taken_away_once(train, tmp_path, monkeypatch):
    """submitit's signal in the middle of training: saved, queued again, continued in place."""
    for name, script in SLURM.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    monkeypatch.setenv("PYTHONPATH", path)  # where interruptions.py lies
    taken = signal_at(signal.SIGUSR2, 2, tmp_path / "once")
    epochs = ("trainer.max_epochs=3", "callbacks.last.every_n_minutes=null")
    status = train(*documented("launcher=slurm"), *FAST, "seed=0", *epochs, *taken)
    log = (tmp_path / "log").read_text()
    assert status == 0, log
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    (job,) = newest_sweep()
    assert job["status"] == "continued", log
    assert Path(job["evaluation"]).is_file()
    (metrics,) = [json.loads(path.read_text()) for path in trainings()]
    assert (metrics["epochs"], metrics["steps"]) == (3, 6)
    asked = (tmp_path / "submission.sh").read_text()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=8", "--time=1440"):
        assert f"#SBATCH {line}" in asked


def test_every_documented_command_is_run():
    used = re.findall(r'documented\("([^"]+)"\)', Path(__file__).read_text())
    searches = [line for line in COMMANDS if "search.py" in line]
    assert len(searches) == 1  # by test_search.py
    for line in COMMANDS:
        assert line in searches or any(text in line for text in used), line

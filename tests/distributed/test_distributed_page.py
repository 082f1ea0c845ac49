"""The commands of docs/distributed.md and the batch script of docs/long-runs.md.

As far as they start on a machine without GPUs.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conftest import NEEDLE_FAST, ROOT
from lfvit.commands.train import check
from lfvit.errors import ConfigError
from lfvit.runs.configs import open_groups
from lfvit.runs.trainers import trainer_settings

PAGE = (ROOT / "docs" / "distributed.md").read_text()
LONG = (ROOT / "docs" / "long-runs.md").read_text()
SCRIPT = "".join(re.findall(r"```(?:bash|shell)\n(.*?)```", LONG, re.DOTALL))
COMMANDS = [
    shlex.split(line)
    for line in (PAGE + SCRIPT).replace("\\\n", " ").splitlines()
    if line.startswith(("python ", "torchrun ", "srun "))
]
OURS = [line[[word.endswith(".py") for word in line].index(True) :] for line in COMMANDS]


@pytest.mark.parametrize("line", OURS, ids=" ".join)
def test_settings_of_a_documented_command(composed, photographs, line):
    """They compose, and are refused by no check."""
    script, *overrides = line
    overrides = [o.replace("data.root=DIR", f"data.root={photographs}") for o in overrides]
    cfg = composed(
        script.removesuffix(".py"), *[o for o in overrides if o != "-m" and "0,1" not in o]
    )
    assert cfg.trainer.devices != 1
    if script == "train.py" and "-m" not in overrides:
        check(cfg)


@pytest.fixture
def started(monkeypatch):
    """This process as torchrun starts it."""

    def start(processes, per_node):
        for name, value in {
            "TORCHELASTIC_RUN_ID": "none",
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": per_node,
        }.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_devices_and_nodes_follow_torchrun(composed, started):
    cpu = ("trainer=ddp", "trainer.accelerator=cpu")
    started(16, per_node=8)
    settings = trainer_settings(composed("train", *cpu))
    assert (settings["devices"], settings["num_nodes"]) == (8, 2)
    settings = trainer_settings(composed("train", *cpu, "trainer.devices=8"))
    assert (settings["devices"], settings["num_nodes"]) == (8, 2)
    with pytest.raises(ConfigError, match=r"16 processes were started on 2 node\(s\), but trainer"):
        trainer_settings(composed("train"))


def test_several_nodes_need_a_launcher(composed):
    with pytest.raises(ConfigError, match="trainer.num_nodes=2 needs .* torchrun or srun"):
        trainer_settings(composed("train", "trainer=ddp", "trainer.num_nodes=2"))


def test_a_sweep_on_slurm_starts_the_processes_of_its_jobs():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = ["hydra/launcher=slurm", "trainer=ddp", "trainer.devices=8"]
        overrides = open_groups([*settings, "trainer.num_nodes=2"])
        launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 8, 8)


SRUN = """#!/usr/bin/env bash
# two tasks on this machine, as srun starts them
while [[ $1 == --* ]]; do
    if [[ $1 == --output || $1 == --error ]]; then shift; fi
    shift
done
export SLURM_JOB_ID=${SLURM_JOB_ID:-4321} SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1
export SLURM_STEP_ID=0 SLURM_NODEID=0 SLURM_JOB_NAME=lfvit
export SLURM_JOB_NODELIST=127.0.0.1 SLURM_NODELIST=127.0.0.1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" > "$CLUSTER/second" 2>&1 &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
status=$?
wait $! && exit $status
"""
SMALL = (
    *NEEDLE_FAST,
    *("trainer=ddp", "trainer.devices=2", "logger=none", "trainer.max_epochs=1"),
    "lr_scheduler.warmup_epochs=0",
)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of one machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.chaos
def test_srun_and_torchrun_share_a_run(cluster):
    """One run directory for two processes, and the same command again finds all done."""
    script = (str(ROOT / "train.py"), *SMALL, "repeat=false", "evaluate=true")
    run("srun", "--kill-on-bad-exit=1", sys.executable, *script)
    run(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *script)
    (first, second) = sorted(Path("outputs/train").glob("2*"))
    assert (first / "evaluation" / "evaluate.json").exists()
    assert sorted(path.name for path in first.glob("*.log")) == ["train.log", "train_process_1.log"]
    assert not (second / "metrics.json").exists()
    assert '"already done"' in (second / "job.json").read_text()

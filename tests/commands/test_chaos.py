"""Many moments, several processes, a disk that is really full, a cluster that takes jobs away."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import NEEDLE_FAST, ROOT
from interruptions import differences, signal_at

pytestmark = pytest.mark.chaos

RECIPE = (
    *NEEDLE_FAST,
    *("data.train_images=96", "data.val_images=17", "trainer.max_epochs=4"),
    *("schedule.selection_start=2", "augment=deit", "augment.repeats=3"),
    *("schedule.drop_path_rate=0.2", "callbacks.ema.decay=0.9"),
    *("trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1", "ckpt_path=auto"),
)
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
}


def start(run_dir, *more, log, launcher=()):
    script = (*launcher, str(ROOT / "train.py"))
    command = [sys.executable, *script, *RECIPE, *more, f"hydra.run.dir={run_dir}"]
    with log.open("a") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file, cwd=log.parent)


def finish(run_dir, *more, log, launcher=()):
    process = start(run_dir, *more, log=log, launcher=launcher)
    assert process.wait(timeout=300) == 0, log.read_text()[-3000:]


@pytest.mark.parametrize("method", ["vit", "lf_vit"])
def test_a_run_that_is_killed_again_and_again(tmp_path, method):
    """At moments nobody chose: within steps, validation, the writing of a checkpoint."""
    log = tmp_path / "log"
    more = (
        f"method={method}",
        "data.num_workers=2",
        "logger=[csv,tensorboard,wandb]",
        "logger.wandb.offline=true",
    )
    finish(tmp_path / "whole", *more, log=log)
    killed, draw = tmp_path / "killed", random.Random(0)
    kills = 0
    while kills < 10:
        seen = _saved(killed)
        process = start(killed, *more, log=log)
        while process.poll() is None and _saved(killed) == seen:
            time.sleep(0.01)  # until it has got further than the last one
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 5
    finish(killed, *more, log=log)
    assert differences(tmp_path / "whole", killed) == []
    assert not [*killed.rglob("*.partial")]


def _saved(run_dir: Path) -> int:
    path = run_dir / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_stop_at_the_same_step(tmp_path, rank):
    """A signal to one of them stops both, and both go on from one checkpoint."""
    log, once = tmp_path / "log", tmp_path / "once"
    more = ("trainer.devices=2", "+trainer.strategy=ddp", "data.batch_size=4")
    more += tuple(signal_at(signal.SIGTERM, 15, once, rank=rank))
    once.touch()
    finish(tmp_path / "whole", *more, log=log)
    once.unlink()
    assert start(tmp_path / "stopped", *more, log=log).wait(timeout=300) == 143
    record = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("stopped", "SIGTERM")
    finish(tmp_path / "stopped", *more, log=log)
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_again_what_was_killed(tmp_path, rank):
    """kill -9 of one of two processes, mid-epoch: one command, both are started again, go on."""
    log, once = tmp_path / "log", tmp_path / "once"
    more = ("trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=4")
    more += tuple(signal_at(signal.SIGKILL, 15, once, rank=rank))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    once.touch()
    finish(tmp_path / "whole", *more, log=log, launcher=torchrun)
    once.unlink()
    assert start(tmp_path / "lost", *more, log=log, launcher=torchrun).wait(timeout=300) != 0
    assert json.loads((tmp_path / "lost" / "run.json").read_text())["status"] != "done"
    once.unlink()
    finish(tmp_path / "killed", *more, log=log, launcher=(*torchrun, "--max-restarts=1"))
    assert once.exists()
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full(tmp_path):
    log, disk = tmp_path / "log", tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        finish(tmp_path / "whole", log=log)
        (disk / "filler").write_bytes(bytes(2_000_000))
        assert start(disk / "run", log=log).wait(timeout=300) == 2
        assert "No space left on device" in log.read_text()
        assert "Traceback" not in log.read_text()
        (disk / "filler").unlink()
        finish(disk / "run", log=log)
        assert differences(tmp_path / "whole", disk / "run") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


SRUN = """#!/usr/bin/env bash
# two tasks on this machine, as srun starts them
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_NNODES=1 SLURM_NODEID=0 SLURM_STEP_ID=0
export SLURM_JOB_NODELIST=127.0.0.1 SLURM_NODELIST=127.0.0.1 SLURM_JOB_NAME=lfvit
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
status=$?
wait $! && exit $status
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$CLUSTER/requeued"
"""


def test_the_documented_batch_script_is_queued_again(tmp_path):
    """What docs/long-runs.md shows, on a cluster of one machine that takes the job away once."""
    page = (ROOT / "docs" / "long-runs.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    run_dir, once = tmp_path / "run", tmp_path / "once"
    small = [*RECIPE[:-1], "trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=4"]
    small += [*signal_at(signal.SIGUSR1, 9, once), f"hydra.run.dir={run_dir}"]
    script = script.replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}")
    script = re.sub(r"experiment=.* hydra.run.dir=\S+", "SMALL", script.replace("\\\n", ""))
    (tmp_path / "job.sh").write_text(script.replace("SMALL", " ".join(small)))
    environment = {
        **ENVIRONMENT,
        **{"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CLUSTER": str(tmp_path)},
        "SLURM_JOB_ID": "77",
    }
    for requeued in (True, False):
        done = subprocess.run(
            ["bash", "job.sh"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (138 if requeued else 0), done.stderr[-2000:]
        assert (tmp_path / "requeued").read_text() == "requeue 77\n"
        status = json.loads((run_dir / "run.json").read_text())["status"]
        assert status == ("stopped" if requeued else "done")

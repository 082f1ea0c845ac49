"""Which processes were started together, and what is left over from others."""

import os
import sys

import pytest

from lfvit.utils import distributed

OURS = (*distributed.RANKS, *distributed.SIZES, "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID")


@pytest.fixture
def started(monkeypatch):
    """Set variables as a launcher does, with no others."""

    def start(variables: str, *arguments: str) -> None:
        monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in OURS})
        os.environ.update(pair.split("=") for pair in variables.split())
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        distributed.forget_other_launchers()

    return start


@pytest.mark.parametrize(
    "left",
    [
        "SLURM_JOB_ID=7 SLURM_JOB_NAME=x SLURM_NTASKS=4",  # salloc
        "SLURM_JOB_ID=7 SLURM_JOB_NAME=jupyter SLURM_NTASKS=4 SLURM_NTASKS_PER_NODE=4",
        "SLURM_JOB_NAME=x SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=0 SLURM_LOCALID=0",
        *("RANK=1", "LOCAL_RANK=3", "SLURM_PROCID=2", "WORLD_SIZE=2", "RANK=x"),
        "RANK=0 WORLD_SIZE=8",
        "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500",
        "NODE_RANK=1 LOCAL_RANK=1 MASTER_PORT=29500 WORLD_SIZE=4",
        "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1",
        "LSB_JOBID=1 LSB_DJOB_RANKFILE=x JSM_NAMESPACE_RANK=1 JSM_NAMESPACE_LOCAL_RANK=1 "
        "JSM_NAMESPACE_SIZE=2",
        "PMI_RANK=1 PMI_SIZE=2",
    ],
)
def test_what_is_left_over_is_said_once_and_ignored(started, capsys, left):
    started(left)
    assert distributed.launched() is None
    assert distributed.is_main_process()
    assert distributed.count_processes({"devices": 1}) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "neither torchrun nor srun has started this process" in message
    from lightning.fabric.plugins.environments import LSFEnvironment, SLURMEnvironment

    assert not SLURMEnvironment.detect()
    assert not LSFEnvironment.detect()


@pytest.mark.parametrize("left", ["", "SLURM_JOB_NAME=x SLURM_NTASKS=1 SLURM_PROCID=0", "RANK=0"])
def test_nothing_is_said_of_one_process(started, capsys, left):
    started(left)
    assert distributed.launched() is None
    assert capsys.readouterr().err == ""


STARTED = [
    ("TORCHELASTIC_RUN_ID=x RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2", [], (1, 2, 1)),
    ("SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=1", [], (1, 2, 1)),
    (  # the shell of salloc, itself a step of one task
        "SLURM_STEP_ID=4294967290 SLURM_STEP_NUM_TASKS=1 SLURM_NTASKS=4 SLURM_PROCID=0",
        [],
        (0, 1, 1),
    ),
    ("LOCAL_RANK=1 WORLD_SIZE=2", ["hydra.job.name=train_ddp_process_1"], None),
]


@pytest.mark.parametrize(("variables", "arguments", "expected"), STARTED)
def test_what_a_launcher_has_started_is_kept(started, capsys, variables, arguments, expected):
    started(variables, *arguments)
    assert distributed.launched() == expected
    assert distributed.is_main_process() is (expected == (0, 1, 1))
    assert capsys.readouterr().err == ""

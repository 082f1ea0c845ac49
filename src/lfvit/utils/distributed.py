"""Several processes of one command: which one this is, decisions of the main one, sums over all.

Lightning starts the processes of one machine itself, from the middle of the command; torchrun and
srun start all of them at its beginning. What has to be decided before there is a process group (the
run directory, which training to continue) is decided by the main process.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lfvit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store

START_TIME = "LFVIT_START_TIME"  # in the name of the run directory, see conf/hydra/default.yaml
RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID"),
    *("SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK"),
    *("PMIX_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK"),
)
SIZES = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE"),
)
"""What launchers say to processes they start, and what is left over for those started by hand."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, per so many
PATIENCE = timedelta(days=30)  # the main process may wait for another training
_calls = count()


class Launched(NamedTuple):
    """This process among those that torchrun or srun started together; rank 0 is the main one."""

    rank: int
    processes: int
    nodes: int


def forget_other_launchers() -> None:
    """Remove what an allocation, a notebook or an earlier command says of several processes.

    Nothing has started this process together with others but torchrun, srun and Lightning; with
    ranks that are left over it would write no results, or wait for processes that never come.
    """
    env = os.environ
    child = f"hydra.job.name=train_ddp_process_{env.get('LOCAL_RANK')}" in sys.argv  # Lightning's
    if "TORCHELASTIC_RUN_ID" in env or "SLURM_STEP_ID" in env or child:
        return
    left = {name: env.pop(name) for name in (*RANKS, *SIZES) if name in env}
    if any(value != ("0" if name in RANKS else "1") for name, value in left.items()):
        print(
            f"ignored: {', '.join(left)}; neither torchrun nor srun has started this process, so "
            "it runs by itself (docs/distributed.md shows several)",
            file=sys.stderr,
        )


def launched() -> Launched | None:
    """What torchrun or srun started; None if this process was started alone, or by Lightning.

    Raises:
        ConfigError: started by srun in a way that Lightning does not support.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        processes = int(env["WORLD_SIZE"])
        return Launched(int(env["RANK"]), processes, processes // int(env["LOCAL_WORLD_SIZE"]))
    if "SLURM_NTASKS" not in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    processes = int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"])
    if processes > 1 and "SLURM_NTASKS_PER_NODE" not in env:
        raise ConfigError(
            f"srun started {processes} tasks with --ntasks alone; pass --ntasks-per-node instead"
        )
    return Launched(int(env["SLURM_PROCID"]), processes, int(env.get("SLURM_NNODES", 1)))


def launched_together() -> Launched | None:
    """What torchrun or srun started, where these are several processes; else None."""
    here = launched()
    return here if here is not None and here.processes > 1 else None


def is_main_process() -> bool:
    """Whether this process writes the files: rank 0, or the only one."""
    env = os.environ
    return int(env.get("RANK") or env.get("LOCAL_RANK") or env.get("SLURM_PROCID") or 0) == 0


def usable_cores() -> int:
    """Cores that this process may use: of its affinity (taskset, SLURM) and its cgroup's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup, or "max": no quota
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, max(quota // period, 1))
    return cores


def number_of_devices(devices: Any) -> int:
    """How many devices ``trainer.devices`` names: a number, or a list of them."""
    return len(devices) if isinstance(devices, list) else int(devices)


def count_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes train with these settings of the Trainer: those that were launched, or one
    for each device that Lightning would start a process for.

    Raises:
        ValueError, TypeError: devices or nodes that are no number.
    """
    here = launched()
    if here is not None:
        return here.processes
    devices = trainer.get("devices", 1)
    if devices in ("auto", "-1", -1):
        import torch

        gpus = trainer.get("accelerator", "auto") != "cpu" and torch.accelerator.is_available()
        return torch.accelerator.device_count() if gpus else 1
    return number_of_devices(devices) * int(trainer.get("num_nodes") or 1)


def from_main_process(compute: Callable[[], Any]) -> Any:
    """What the main process computes, in every process that was launched with it.

    The others wait for it as long as it takes. All of them have to call this equally often.

    Args:
        compute: returns plain values; called in the main process only.

    Raises:
        ConfigError: in the other processes, where the main one fails.
    """
    here = launched_together()
    if here is None:
        return compute()
    store, key = _store(), f"decision {next(_calls)}"
    if here.rank:
        decision = json.loads(store.get(key))
        if "error" in decision:
            raise ConfigError(f"the main process stopped: {decision['error']}")
        return decision["value"]
    try:
        value = compute()
    except BaseException as error:
        store.set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    store.set(key, json.dumps({"value": value}))
    return value


def join_launched(command: str) -> list[str]:
    """Give the processes that were launched together one time, and so one run directory.

    Processes that torchrun has restarted also get a new address to meet at. As Lightning does for
    the processes it starts, all but the main one log to a file of their own and save no config.

    Returns:
        Overrides of Hydra for this process.
    """
    here = launched_together()
    if here is None:
        return []
    if _agent_store() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        # torchrun's store outlives its workers: PyTorch would look there for those that have ended
        os.environ["MASTER_PORT"] = from_main_process(_free_port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    now = from_main_process(lambda: datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    os.environ[START_TIME] = now
    if not here.rank:
        return []
    return [f"hydra.job.name={command}_process_{here.rank}", "hydra.output_subdir=null"]


def all_ended(seconds: float = 60) -> bool:
    """Whether every launched process gets here in time; False if one waits for one that failed."""
    from torch.distributed import DistError

    here = launched()
    assert here is not None
    number = next(_calls)
    keys = [f"end {number} {rank}" for rank in range(here.processes)]
    try:
        _store().set(keys[here.rank], "")
        _store().wait(keys, timedelta(seconds=seconds))
    except DistError:
        return False
    return True


def _agent_store() -> bool:
    """Whether torchrun keeps the store, and not the main process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


@cache
def _store() -> "Store":
    """Where the processes leave each other messages: the store that PyTorch will use as well."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from torch.distributed import PrefixStore, TCPStore

    slurm = "TORCHELASTIC_RUN_ID" not in os.environ
    environment = SLURMEnvironment() if slurm else TorchElasticEnvironment()
    store = TCPStore(
        environment.main_address,
        environment.main_port,
        environment.world_size(),
        is_master=environment.global_rank() == 0 and not _agent_store(),
        timeout=PATIENCE,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"lfvit {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def world_size() -> int:
    """How many processes train together; 1 before they have met."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_list(part: Sequence[Any]) -> list[Any]:
    """The lists of all processes in the order of ranks, as one, in every process."""
    if world_size() == 1:
        return list(part)
    import torch.distributed as dist

    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(part))
    return [item for items in parts for item in items]


def mean_over_images(values: "Tensor") -> "Tensor":
    """The mean of values (B,), one per image, over all processes, which have equally many."""
    if world_size() == 1:
        return values.mean()
    from torch.distributed.nn.functional import all_reduce  # with its gradient

    return all_reduce(values.mean()) / world_size()

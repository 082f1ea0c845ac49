"""Several processes of one command, as torchrun or srun start them: who they are, what they share.

Lightning starts the processes of one machine itself, from the middle of the command; torchrun and
srun start all of them at its beginning. What has to be one decision before there is a process group
(the run directory, which training to continue) is then made by the main process.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch.distributed import DistError, PrefixStore, Store, TCPStore

from lfvit.errors import ConfigError

STARTED = "LFVIT_STARTED"  # the time in the name of the run directory, see conf/hydra/default.yaml
PATIENCE = timedelta(days=30)  # the main process may wait for another training
_calls = count()


class Launched(NamedTuple):
    """This process among those that were started together. rank: 0 is the main process."""

    rank: int
    processes: int
    nodes: int

    @property
    def per_node(self) -> int:
        return self.processes // self.nodes


def launched() -> Launched | None:
    """What torchrun or srun started; None if this process was started alone, or by Lightning.

    Raises:
        ConfigError: started by srun in a way that Lightning does not understand.
    """
    environment = _environment()
    if environment is None:
        return None
    processes = environment.world_size()
    if isinstance(environment, SLURMEnvironment):
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
    else:
        nodes = processes // int(os.environ["LOCAL_WORLD_SIZE"])
    return Launched(environment.global_rank(), processes, nodes)


def processes_of(trainer: Mapping[str, Any]) -> int:
    """How many processes train with these settings of the Trainer.

    Those that were started; or, where Lightning starts them, one for each device it would take.

    Raises:
        ValueError, TypeError: devices or nodes that are no number.
    """
    here = launched()
    if here is not None:
        return here.processes
    devices = trainer.get("devices", 1)
    if devices in ("auto", "-1", -1):
        gpus = trainer.get("accelerator", "auto") != "cpu" and torch.accelerator.is_available()
        return torch.accelerator.device_count() if gpus else 1
    per_node = len(devices) if isinstance(devices, list) else int(devices)
    return per_node * int(trainer.get("num_nodes") or 1)


def agreed(decide: Callable[[], Any]) -> Any:
    """What the main process decides, in every process that was started with it.

    The others wait for it as long as it takes. All of them have to come here equally often.

    Args:
        decide: returns plain values; called by the main process alone.

    Raises:
        ConfigError: in the other processes, where the main one fails.
    """
    here = launched()
    if here is None or here.processes == 1:
        return decide()
    store, key = _store(), f"decision {next(_calls)}"
    if here.rank:
        decision = json.loads(store.get(key))
        if "error" in decision:
            raise ConfigError(f"the main process stopped: {decision['error']}")
        return decision["value"]
    try:
        value = decide()
    except BaseException as error:
        store.set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    store.set(key, json.dumps({"value": value}))
    return value


def together() -> bool:
    """Whether torchrun or srun started this process together with others."""
    here = launched()
    return here is not None and here.processes > 1


def in_sweep() -> bool:
    """Whether this is a job of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def number_of_devices(devices: Any) -> int:
    """How many devices ``trainer.devices`` names: a number, or a list of them."""
    return len(devices) if isinstance(devices, list) else int(devices)


def join_launched() -> None:
    """Give the processes that were started together one time, and so one run directory.

    Processes that torchrun has started again also get a place to meet that is new.

    As Lightning does for the processes it starts, the others than the main one get a log file of
    their own, and no copy of the config.
    """
    here = launched()
    if here is None or here.processes == 1:
        return
    if _agent_store() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        # torchrun's store outlives its workers: in it PyTorch would look for those that have ended
        os.environ["MASTER_PORT"] = agreed(_free_port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    os.environ[STARTED] = agreed(lambda: datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    if here.rank:
        name = f"{Path(sys.argv[0]).stem}_process_{here.rank}"
        sys.argv += [f"hydra.job.name={name}", "hydra.output_subdir=null"]


def all_ended(seconds: float = 60) -> bool:
    """Whether every process gets here in time; False if one hangs, waiting for one that failed."""
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


def _environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return None
    try:
        return SLURMEnvironment()
    except RuntimeError as error:  # such as --ntasks without --ntasks-per-node
        raise ConfigError(str(error)) from error


def _agent_store() -> bool:
    """Whether torchrun keeps the store, and not the main process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _free_port() -> str:
    """Of the main process, where the others meet it."""
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


@cache
def _store() -> Store:
    """Where the processes leave each other messages: the one that PyTorch will meet in as well."""
    environment = _environment()
    assert environment is not None
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

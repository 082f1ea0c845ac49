"""Start N processes as torchrun would, on the CPU, and collect what each of them returns."""

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 240  # seconds
CONTEXT = multiprocessing.get_context("forkserver")  # the libraries are imported once, for all
CONTEXT.set_forkserver_preload(["lfvit.commands.jobs"])


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of `count` processes, by rank."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        processes = [
            CONTEXT.Process(target=_process, args=(r, count, port, folder, function, arguments))
            for r in range(count)
        ]
        for process in processes:
            process.start()
        _wait(processes)
        found = [pickle.loads(path.read_bytes()) for path in sorted(Path(folder).iterdir())]
    failures = [trace for failed, trace in found if failed]
    assert not failures, "\n".join(failures)
    assert len(found) == count, "a process hung or was killed"
    return [value for _, value in found]


def _wait(processes: list[Any]) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    patience = time.monotonic() + PATIENCE
    while any(p.is_alive() for p in processes) and time.monotonic() < patience:
        if any(p.exitcode for p in processes):
            time.sleep(2)
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.join()


def _process(rank: int, count: int, port: int, folder: str, function: Any, arguments: Any) -> None:
    started_by_torchrun = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
    }
    os.environ.update({name: str(value) for name, value in started_by_torchrun.items()})
    os.environ.pop("WANDB_SERVICE", None)  # of the process that runs the tests
    said = os.open(os.devnull, os.O_WRONLY)
    os.dup2(said, 1)  # progress bars and remarks
    os.dup2(said, 2)
    import torch
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # Lightning reads it when it is imported, which the server did
    torch.set_num_threads(1)
    failed = False
    try:
        found = function(*arguments)
    except BaseException:
        failed, found = True, f"rank {rank}: {traceback.format_exc()}"
    Path(folder, f"{rank:03d}").write_bytes(pickle.dumps((failed, found)))
    os._exit(failed)  # without waiting for processes that may be gone

"""Make every run once: one after the other, or several at a time in processes of their own."""

import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import product
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from rich.console import Console

from lfvit.errors import TrainingError
from lfvit.results.artifacts.runs import Run, finish
from lfvit.results.artifacts.spec import Artifact
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.utils.signals import Stopped, StopSignals

Result = dict[str, Any] | str
"""The contents of evaluate.json, or what went wrong, in words."""


def by_need(runs: Mapping[str, Run], artifacts: Sequence[Artifact]) -> list[Run]:
    """Every run once, what tells most first, each after the one it starts from.

    What the first artifact needs comes first: one seed of everything, yardsticks before the rest,
    then the next seed.

    Args:
        runs: key -> run, see `compose_runs`.
        artifacts: in the order in which they are asked for.
    """
    order: dict[Path, Run] = {}

    def place(run: Run) -> None:
        if run.start is not None:
            place(runs[run.start])
        order.setdefault(run.folder, run)

    seeds = list(dict.fromkeys(key.rpartition("/")[2] for key in runs))
    for artifact in artifacts:
        names = [row["run"] for row in artifact.yardsticks] + artifact.runs
        for seed, name in product(seeds, dict.fromkeys(names)):
            if f"{name}/{seed}" in runs:
                place(runs[f"{name}/{seed}"])
    return list(order.values())


def run_all(
    order: Sequence[Run], runs: Mapping[str, Run], fresh: bool, jobs: int, console: Console
) -> dict[Path, Result]:
    """Finish every run, whatever becomes of the others.

    Args:
        order: of the runs, each after the one it starts from.
        runs: key -> run.
        fresh: repeat what is finished.
        jobs: how many at a time. With more than one, each has a process of its own, whose output
            is in the file seedN.txt beside its folder seedN, and the cores are shared out.
    """
    if jobs > 1:
        return _side_by_side(order, runs, fresh, jobs, console)
    results: dict[Path, Result] = {}
    for number, run in enumerate(order, 1):
        console.rule(f"{number} of {len(order)}: {run.name}, seed {run.seed}")
        if run.start is not None and isinstance(results[runs[run.start].folder], str):
            results[run.folder] = _no_start(run)
            continue
        try:
            results[run.folder] = finish(run, runs, fresh, console)
        except Exception as error:  # whatever it is, it must not lose the other runs
            results[run.folder] = _failure(run, error)
            console.print(f"failed: {error}", soft_wrap=True)
    return results


def _side_by_side(
    order: Sequence[Run], runs: Mapping[str, Run], fresh: bool, jobs: int, console: Console
) -> dict[Path, Result]:
    """In order, except that what can begin overtakes what waits for the run that it starts from.

    A signal stops those that are under way, in the orderly way of a training, and starts no other.
    """
    results: dict[Path, Result] = {}
    waiting, running = list(order), dict[Future[Result], Run]()
    processes = _Processes()
    done = 0

    def make(run: Run) -> Result:
        nonlocal done
        start = None if run.start is None else runs[run.start]
        result: Result
        started = time.monotonic()
        if start is not None and isinstance(results[start.folder], str):
            result = _no_start(run)
        else:
            result = _in_a_process(processes, run, start, fresh, jobs)
        done += 1
        ended = "stopped" if processes.stopping else "failed"
        words = ended if isinstance(result, str) else "done"
        console.print(
            f"{done} of {len(order)}: {run.name}, seed {run.seed}: {words} after "
            f"{time.monotonic() - started:.0f} s"
        )
        return result

    with StopSignals(), ThreadPoolExecutor(jobs) as pool:
        try:
            while len(results) < len(order):
                ready = [r for r in waiting if r.start is None or runs[r.start].folder in results]
                for run in ready[: jobs - len(running)]:
                    waiting.remove(run)
                    running[pool.submit(make, run)] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future).folder] = future.result()
            return {run.folder: results[run.folder] for run in order}
        except BaseException:  # from outside; the pool would go on with what it was given
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise


class _Processes:
    """Those that are running, to be stopped together."""

    def __init__(self) -> None:
        self.running: set[BaseProcess] = set()
        self.stopping = False

    def run(self, *work: Any) -> int | None:
        """Do `_work` in a new one and wait for it; its exit status, None if all are stopped."""
        process = get_context("spawn").Process(target=_work, args=work)
        process.start()
        self.running.add(process)
        if self.stopping:  # since before it was among the running ones
            process.terminate()
        process.join()
        self.running.discard(process)
        return None if self.stopping else process.exitcode

    def stop(self) -> None:
        self.stopping = True
        for process in list(self.running):
            process.terminate()


def _in_a_process(
    processes: _Processes, run: Run, start: Run | None, fresh: bool, jobs: int
) -> Result:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log = run.folder.with_suffix(".txt")
    starts = {} if start is None or run.start is None else {run.start: start}
    status = processes.run(run, starts, fresh, jobs, log)
    if status is None:
        return "stopped"
    if status:
        told = run.folder / "error.txt"
        if status == 1 and told.exists():
            return f"{told.read_text().strip().splitlines()[-1]} ({told})"
        return _failure(run, TrainingError(f"ended with status {status}, see {log}"))
    return dict(json.loads(run.result.read_text()))


def _work(run: Run, starts: Mapping[str, Run], fresh: bool, jobs: int, log: Path) -> None:
    """What a process of its own does; its exit status is 1 where the run failed."""
    with log.open("a") as file:
        for stream in (1, 2):  # also what libraries print
            os.dup2(file.fileno(), stream)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, min(torch.get_num_threads(), (cores or 1) // jobs)))
        try:
            with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
                finish(run, starts, fresh, Console(file=file))
        except Stopped as stopped:
            raise SystemExit(stopped.status) from stopped
        except Exception as error:
            _failure(run, error)
            raise SystemExit(1) from error


def _no_start(run: Run) -> str:
    return f"starts from {run.start}, which failed"


def _failure(run: Run, error: Exception) -> str:
    """What went wrong in words, and in full in error.txt of the run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / "error.txt"
    path.write_text("".join(traceback.format_exception(error)))
    return f"{error} ({path})"

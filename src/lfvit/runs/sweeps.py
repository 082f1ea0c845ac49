"""A sweep (`-m`) as a whole: every job runs whatever became of the others, and a list is left.

Two small files in every job's directory carry this, so that it works with any launcher:

- run.json is written by a training into the directory it trains in, see `lfvit.runs.directory`;
- job.json says what became of the job: it may have found its training done elsewhere.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lfvit.errors import ConfigError
from lfvit.measure.schemas import read_evaluation
from lfvit.runs.directory import inside, now
from lfvit.runs.provenance import environment
from lfvit.utils.atomic_io import read_json, write_atomic, write_json
from lfvit.utils.distributed import (
    all_ended,
    is_main_process,
    launched,
    launched_together,
    number_of_devices,
)
from lfvit.utils.error_messages import error_message
from lfvit.utils.markdown import code, escape
from lfvit.utils.validation import plain
from lfvit.utils.warning_filters import filter_warnings

log = logging.getLogger(__name__)

WELL = ("trained", "continued", "evaluated", "already done", "done")
"""What becomes of a job that ends well; the others are "failed" and "unfinished"."""

SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"

_started: list[Path] = []  # the directory of the sweep that this process started


def in_sweep() -> bool:
    """Whether this is a job of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class SweepCallback(Callback):
    """Hydra's hooks: one failing job does not stop the others, whichever launcher runs them."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check_sweep(config)
        except ConfigError as error:  # as an exception, Hydra would make a warning of it
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        _started[:] = [Path(config.hydra.sweep.dir)]

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            filter_warnings()  # a launcher may have started this process
            if not is_main_process():
                return
            job = _directory(config)
            (job / "job.json").unlink(missing_ok=True)  # of an earlier sweep
            overrides = [o.lstrip("+") for o in config.hydra.overrides.task]
            note(job, job=config.hydra.job.num, overrides=overrides, status="unfinished")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        job, failed = _directory(config), job_return.status == JobStatus.FAILED
        if failed:
            error = job_return._return_value
            message = error_message(error)
            if is_main_process():
                note(job, status="failed", error=message or f"{type(error).__name__}: {error}")
            trace = None if message else error  # into the job's own log as well
            log.error("job %s failed: %s", config.hydra.job.num, message or "", exc_info=trace)
        if launched_together() and not all_ended():
            os._exit(1)  # srun then ends those that wait for this one
        if failed:
            # Hydra raises the error of a failed job, which would hide those that ended well
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        elif is_main_process() and read_json(job / "job.json").get("status") not in WELL:
            note(job, status="done")


def note(folder: Path, **what: Any) -> None:
    """Add to a job's job.json."""
    write_json(folder / "job.json", {**read_json(folder / "job.json"), **what, "time": now()})


def check_sweep(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would get other processes than they need.

    A job on several devices starts its processes itself, see `lfvit.commands.jobs.run_job`; on
    SLURM (``hydra/launcher=slurm``) SLURM starts them.

    Raises:
        ConfigError: naming the settings.
    """
    trainer, launcher = cfg.get("trainer") or {}, cfg.hydra.launcher
    devices, nodes = plain(trainer.get("devices", 1)), trainer.get("num_nodes") or 1
    if launcher._target_ != SLURM or launched_together():
        refuse_launched("a multirun")
        if nodes != 1:
            raise ConfigError(
                f"trainer.num_nodes={nodes} in a multirun: a job starts the processes of one "
                "machine; use hydra/launcher=slurm, or plain runs one by one"
            )
        return
    if devices in ("auto", -1, "-1"):
        raise ConfigError(
            f"trainer.devices={devices} in a multirun: SLURM is asked for the devices of a node "
            "before a job sees one; pass their number, such as trainer.devices=8"
        )
    if (number_of_devices(devices), nodes) != (launcher.tasks_per_node, launcher.nodes):
        raise ConfigError(
            f"trainer.devices={devices} on {nodes} node(s) needs as many processes, but "
            f"hydra.launcher.tasks_per_node={launcher.tasks_per_node} and nodes={launcher.nodes} "
            "start others"
        )


def refuse_launched(what: str) -> None:
    """Refuse to do what every one of several processes would do again.

    Raises:
        ConfigError: torchrun or srun started this process with others.
    """
    here = launched()
    if here is not None and here.processes > 1:
        raise ConfigError(
            f"{what} in {here.processes} processes, each of which would start all of it; start it "
            "in one: trainings on several devices start their own processes"
        )


def finish() -> bool:
    """List what became of the jobs of the sweep that this process started, if it started one.

    Writes sweep.json and sweep.md into the sweep's directory, also after an interruption.

    Returns:
        Whether every job ended well.
    """
    if not _started:
        return True
    folder = _started.pop()
    jobs = collect(folder)
    if not jobs:
        return True
    write_json(folder / "sweep.json", {"jobs": jobs, "environment": environment()})
    write_atomic(folder / "sweep.md", _markdown(jobs))
    _print(jobs, folder)
    return all(job["status"] in WELL for job in jobs)


def collect(folder: Path) -> list[dict[str, Any]]:
    """What became of every job in a sweep's directory, by job number.

    Returns:
        Per job: job, overrides, status, error, directory (of the training), evaluation (its
        evaluate.json or None), threshold, top1 (%), gmacs, exit_fraction; None where unknown.
    """
    noted = {path.parent: read_json(path) for path in folder.rglob("job.json")}
    return [_row(job, noted[job]) for job in sorted(noted, key=lambda job: noted[job]["job"])]


def _row(job: Path, noted: dict[str, Any]) -> dict[str, Any]:
    training = inside(job, noted.get("directory", ".")) or job
    # of a training, of evaluate.py -m
    evaluation = inside(job, noted.get("evaluation", "evaluate.json")) or job / "evaluate.json"
    point: Mapping[str, Any] = {}
    if evaluation.exists():
        point = read_evaluation(evaluation).configured.model_dump()
    elif noted["status"] in WELL:
        metrics = read_json(training / "metrics.json")
        point = {"top1": metrics.get("val/top1"), "gmacs": metrics.get("gmacs")}
    return {
        "job": noted["job"],
        "overrides": noted["overrides"],
        "status": noted["status"],
        "error": noted.get("error"),
        "directory": os.path.relpath(training),
        "evaluation": os.path.relpath(evaluation) if evaluation.exists() else None,
        **{key: point.get(key) for key in ("threshold", "top1", "gmacs", "exit_fraction")},
    }


def _directory(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.output_dir)


def _cells(job: Mapping[str, Any], common: set[str]) -> tuple[str, ...]:
    """A row of the list, with the settings that not all jobs share."""

    def number(key: str, digits: int, scale: int = 1) -> str:
        return "" if job[key] is None else f"{scale * job[key]:.{digits}f}"

    return (
        str(job["job"]),
        " ".join(o for o in job["overrides"] if o not in common),
        job["status"],
        number("threshold", 2),
        number("top1", 2),
        number("gmacs", 4),
        number("exit_fraction", 1, 100),
        job["directory"],
    )


COLUMNS = ("job", "settings", "status", "η", "top-1 (%)", "GMACs", "early (%)", "directory")


def _common(jobs: Sequence[Mapping[str, Any]]) -> set[str]:
    shared = set.intersection(*(set(job["overrides"]) for job in jobs))
    return shared if len(jobs) > 1 else set()


def _counts(jobs: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(job["status"] for job in jobs)
    parts = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: {parts}"


def _errors(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for every kind of error, with the jobs that met it."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        if job["error"] is not None:
            found.setdefault(job["error"], []).append(str(job["job"]))
    return [
        f"job{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}: {error}"
        for error, numbers in found.items()
    ]


def _markdown(jobs: Sequence[Mapping[str, Any]]) -> str:
    common = _common(jobs)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|--:|---|---|--:|--:|--:|--:|---|"]
    lines += ["| " + " | ".join(map(escape, _cells(job, common))) + " |" for job in jobs]
    about = environment()
    parts = ["\n".join(lines)]
    if common:
        parts.append("All: " + " ".join(code(o) for o in jobs[0]["overrides"] if o in common))
    parts += [f"- {escape(error)}" for error in _errors(jobs)]
    parts.append(f"{code(about['command'])}, commit {about['commit']}, {about['machine']}.")
    return "\n\n".join([f"# {_counts(jobs)}", *parts]) + "\n"


def _print(jobs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    console, common = Console(markup=False), _common(jobs)
    table = Table(title=_counts(jobs))
    for name in COLUMNS[:-1]:  # directories are long, and in the files
        table.add_column(name, justify="left" if name == "settings" else "right", overflow="fold")
    for job in jobs:
        number, settings, *rest, _ = _cells(job, common)
        table.add_row(number, settings.replace(" ", "\n"), *rest)
    console.print(table)
    console.print(f"written to {folder}: sweep.json, sweep.md", soft_wrap=True)
    for error in _errors(jobs):
        print(f"error: {error}", file=sys.stderr)
    if any(job["status"] not in WELL for job in jobs):
        print("the same command goes on from here: it skips what is done", file=sys.stderr)

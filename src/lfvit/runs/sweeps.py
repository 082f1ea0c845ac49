"""A sweep (`-m`) as a whole: every job runs whatever became of the others, and a list is left.

Two small files in the directory of each job carry this, so that it works with any launcher:

- run.json is written by a training into the directory it trains in, see `lfvit.runs.directory`;
- job.json says what became of the job: it may have found its training done elsewhere.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from lfvit.errors import ConfigError
from lfvit.runs.directory import inside, now
from lfvit.utils.atomic_io import read_json, write_atomic, write_json
from lfvit.utils.distributed import all_ended, is_main_process, launched_together
from lfvit.utils.error_messages import error_message, filter_warnings

log = logging.getLogger(__name__)

WELL = ("trained", "continued", "stopped", "evaluated", "already done", "done")
"""What becomes of a job that ends well; the others are "failed" and "unfinished"."""

TITLES = {
    "job": "job",
    "settings": "settings",
    "status": "status",
    "threshold": "η",
    "top1": "top-1 (%)",
    "gmacs": "GMACs",
    "exit_fraction": "early",
    "directory": "directory",
}
FORMATS = {"threshold": ".2f", "top1": ".2f", "gmacs": ".4f", "exit_fraction": ".1%"}

_started: list[Path] = []  # the directory of the sweep that this process started
_failure: list[BaseException] = []  # of the single run of this process


def in_sweep() -> bool:
    """Whether this is a job of a sweep (`-m`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class SweepCallback(Callback):
    """Hydra's hooks: one failing job does not stop the others, whichever launcher runs them."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            refuse_launched("a multirun")
        except ConfigError as error:  # as an exception, Hydra would make a warning of it
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        _started[:] = [Path(config.hydra.sweep.dir)]

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            filter_warnings()  # a launcher may have started this process
            if is_main_process():
                job = Path(config.hydra.runtime.output_dir)
                (job / "job.json").unlink(missing_ok=True)  # of an earlier sweep
                overrides = [o.lstrip("+") for o in config.hydra.overrides.task]
                note(job, job=config.hydra.job.num, overrides=overrides, status="unfinished")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        failed = job_return.status == JobStatus.FAILED
        if config.hydra.mode != RunMode.MULTIRUN:
            if failed:  # raised by the command: Hydra would print its overrides first
                _failure[:] = [job_return._return_value]
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None
            return
        job = Path(config.hydra.runtime.output_dir)
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


def raise_failure() -> None:
    """Raise the error that ended the single run of this process, if there was one."""
    if _failure:
        raise _failure.pop()


def note(folder: Path, **entries: Any) -> None:
    """Add to a job's job.json."""
    write_json(folder / "job.json", {**read_json(folder / "job.json"), **entries, "time": now()})


def refuse_launched(what: str) -> None:
    """Refuse to do what every one of several processes would do again.

    Raises:
        ConfigError: torchrun or srun started this process with others.
    """
    if (here := launched_together()) is not None:
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
    from lfvit.runs.provenance import environment
    from lfvit.utils.markdown import code, escape, print_table, to_markdown

    folder = _started.pop()
    jobs = collect(folder)
    if not jobs:
        return True
    origin = environment()
    write_json(folder / "sweep.json", {"jobs": jobs, "environment": origin})
    common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
    rows, by_error = [], dict[str, list[str]]()
    for job in jobs:
        rows.append({**job, "settings": " ".join(o for o in job["overrides"] if o not in common)})
        if job["error"] is not None:
            by_error.setdefault(job["error"], []).append(str(job["job"]))
    errors = [
        f"job{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}: {error}"
        for error, numbers in by_error.items()
    ]
    counts = Counter(job["status"] for job in jobs).most_common()
    title = f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: "
    title += ", ".join(f"{count} {status}" for status, count in counts)
    parts = [f"# {title}", to_markdown(rows, FORMATS, TITLES)]
    if common:
        parts.append("All: " + " ".join(code(o) for o in jobs[0]["overrides"] if o in common))
    parts += [f"- {escape(error)}" for error in errors]
    parts.append(f"{code(origin['command'])}, commit {origin['commit']}, {origin['machine']}.")
    write_atomic(folder / "sweep.md", "\n\n".join(parts) + "\n")
    shown = {key: name for key, name in TITLES.items() if key != "directory"}  # long
    print_table(rows, FORMATS, shown, title=title)
    print(f"written to {folder}: sweep.json, sweep.md")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    well = all(job["status"] in WELL for job in jobs)
    if not well:
        print("the same command goes on from here: it skips what is done", file=sys.stderr)
    return well


def collect(folder: Path) -> list[dict[str, Any]]:
    """What became of every job in a sweep's directory, by job number.

    Returns:
        Per job: job, overrides, status, error, directory (of the training), evaluation (its
        evaluate.json or None), threshold, top1 (%), gmacs, exit_fraction; None where unknown.
    """
    jobs = {path.parent: read_json(path) for path in folder.rglob("job.json")}
    return [_row(job, jobs[job]) for job in sorted(jobs, key=lambda job: jobs[job]["job"])]


def _row(job: Path, entries: dict[str, Any]) -> dict[str, Any]:
    training = inside(job, entries.get("directory", ".")) or job
    # of a training, of evaluate.py -m
    evaluation = inside(job, entries.get("evaluation", "evaluate.json")) or job / "evaluate.json"
    point: Mapping[str, Any] = {}
    if evaluation.exists():
        from lfvit.measure.schemas import read_evaluation

        point = read_evaluation(evaluation).configured.model_dump()
    elif entries["status"] in WELL:
        metrics = read_json(training / "metrics.json")
        point = {"top1": metrics.get("val/top1"), "gmacs": metrics.get("gmacs")}
    return {
        "job": entries["job"],
        "overrides": entries["overrides"],
        "status": entries["status"],
        "error": entries.get("error"),
        "directory": os.path.relpath(training),
        "evaluation": os.path.relpath(evaluation) if evaluation.exists() else None,
        **{key: point.get(key) for key in ("threshold", "top1", "gmacs", "exit_fraction")},
    }

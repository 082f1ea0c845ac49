"""One job: a training that is made once, continued or found done, and its evaluation."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lfvit.commands.train import train
from lfvit.errors import TrainingError
from lfvit.runs.configs import compose_config
from lfvit.runs.directory import LOCK, check_free
from lfvit.runs.identity import identity
from lfvit.runs.resume import AUTO, check_own_directory, last_of
from lfvit.runs.sweeps import in_sweep, note
from lfvit.runs.trainers import trainer_settings
from lfvit.utils.atomic_io import read_json, write_json
from lfvit.utils.distributed import (
    count_processes,
    from_main_process,
    is_main_process,
    launched,
    launched_together,
)
from lfvit.utils.signals import call
from lfvit.utils.validation import plain

log = logging.getLogger(__name__)

REQUEST = "request.json"  # beside evaluate.json: the overrides it was made with


class Job(NamedTuple):
    """What became of a job.

    status: "trained", "continued", "stopped" before its end by a limit, "already done", or
    "evaluated" if only the evaluation was missing. directory: of the training. metrics: contents of
    its metrics.json. evaluation: path of its evaluate.json, if asked for.
    """

    status: str
    directory: Path
    metrics: dict[str, Any]
    evaluation: Path | None


def run(cfg: DictConfig) -> Job:
    """Train as the command line says.

    A single run trains. A job of a sweep first looks for a training of the same identity in the
    runs beside its sweep, and evaluates afterwards. ``repeat`` and ``evaluate`` choose otherwise.
    """
    hydra_cfg, sweep = HydraConfig.get(), in_sweep()
    repeat = not sweep if cfg.repeat is None else cfg.repeat
    evaluated = sweep if cfg.evaluate is None else cfg.evaluate
    apart = sweep or evaluated or not repeat  # Lightning's processes would start all that again
    return run_job(
        cfg,
        Path(hydra_cfg.sweep.dir if sweep else hydra_cfg.run.dir).absolute().parent,
        repeat=repeat,
        evaluation=() if evaluated else None,
        overrides=list(hydra_cfg.overrides.task) if apart else None,
    )


def run_job(
    cfg: DictConfig,
    root: Path,
    *,
    reuse: Sequence[Path] = (),
    repeat: bool = False,
    evaluation: Sequence[str] | None = (),
    overrides: Sequence[str] | None = None,
) -> Job:
    """Train and evaluate, as far as that is not done already.

    Of trainings with the same identity (`lfvit.runs.identity`) one runs at a time, in whatever
    process; the others wait and find it done. An interrupted one is continued in its own directory.

    Args:
        cfg: a composed training config; ``run_dir`` is the job's own directory, ``init_from`` names
            the weights to start from, ``ckpt_path=auto`` continues what is in ``run_dir``.
        root: folder of the run directories, one or two levels below it, to look in.
        reuse: more such folders, in which finished trainings count.
        repeat: train in any case.
        evaluation: overrides of evaluate.yaml, beside the config's threshold; None: none is made.
        overrides: those that `cfg` was composed from. With them, a training on several devices runs
            as a command of its own, which Lightning's processes start again instead of the caller.

    Raises:
        LFViTError: anything the user can mend.
    """
    job, key = Path(cfg.run_dir), identity(cfg)
    job.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".locks" / f"{key}.lock")  # equal jobs take turns
    with nullcontext() if repeat or not is_main_process() else _held(lock):
        status, name = from_main_process(lambda: _decide(cfg, [root, *reuse], key, repeat))
        folder = Path(name)
        if status == "already done":
            metrics = read_json(folder / "metrics.json")
        else:
            training = cfg.copy()
            training.run_dir = str(folder)
            if status == "continued":
                training.ckpt_path, training.init_from = str(last_of(folder)), None
            elif cfg.ckpt_path == AUTO:
                training.ckpt_path = None
            metrics = _train(training, overrides)
            if read_json(folder / "run.json").get("status") == "stopped":
                status = "stopped"
        _note(job, folder, directory=folder)
        path = None
        if evaluation is not None:
            chosen = [*_evaluation_settings(cfg), *evaluation]
            path, anew = evaluate_once(folder, job, [root, *reuse], chosen)
            if anew and status == "already done":
                status = "evaluated"
    _note(job, folder, status=status)
    return Job(status, folder, metrics, path)


def _train(cfg: DictConfig, overrides: Sequence[str] | None) -> dict[str, Any]:
    """Train in this process; on several devices as a command of its own, see `run_job`."""
    if overrides is None or launched() or count_processes(plain(cfg.trainer)) == 1:
        return train(cfg)
    trainer_settings(cfg)  # refuses nodes that nothing starts processes on
    paths = {"hydra.run.dir": cfg.run_dir, "ckpt_path": cfg.ckpt_path, "init_from": cfg.init_from}
    command = [sys.executable, "-m", "lfvit", "train"]
    if HydraConfig.initialized():  # --config-dir
        sources = HydraConfig.get().runtime.config_sources
        command += [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    command += [*overrides, f"name={cfg.name}", "repeat=true", "evaluate=false"]
    command += [f"{key}={'null' if path is None else path}" for key, path in paths.items()]
    if status := call(command):
        raise TrainingError(f"{shlex.join(command)} ended with status {status}, see its messages")
    return read_json(Path(cfg.run_dir) / "metrics.json")


def _evaluation_settings(cfg: DictConfig) -> list[str]:
    """What an evaluation takes from the config of its training."""
    names = ["accelerator", "precision", *(("devices", "num_nodes") if launched_together() else ())]
    trainer = [f"trainer.{name}={cfg.trainer[name]}" for name in names if name in cfg.trainer]
    threshold = [] if cfg.threshold is None else [f"threshold={cfg.threshold}"]
    return [*threshold, f"data.num_workers={cfg.data.num_workers}", *trainer]


def _decide(cfg: DictConfig, roots: Sequence[Path], key: str, repeat: bool) -> tuple[str, str]:
    """What becomes of a job (trained, continued or already done), and its training's directory."""
    job = Path(cfg.run_dir)
    if cfg.ckpt_path == AUTO:
        check_own_directory(cfg)
        known = [job] if (job / "run.json").exists() else []
    elif repeat or cfg.ckpt_path is not None:
        known = []
    else:
        records = [p for p in _files(roots, "run.json") if read_json(p).get("identity") == key]
        known = [path.parent for path in records]
    for run in known:
        # a process that Lightning started follows the one it would wait for
        if is_main_process() and not _is_done(run):
            with _held(FileLock(run / LOCK)):
                pass
    done = [run for run in known if _is_done(run)]
    if done:
        commit = read_json(done[0] / "metrics.json").get("commit")
        log.info("already done: %s (%s)", done[0], f"commit {commit}" if commit else "no commit")
        return "already done", str(done[0])
    begun = [run for run in known if last_of(run).exists() and run.is_relative_to(roots[0])]
    if begun:
        folder = max(begun, key=lambda run: last_of(run).stat().st_mtime)
        log.info("continues %s", folder)
        return "continued", str(folder)
    if is_main_process() and cfg.ckpt_path != AUTO:
        check_free(cfg)
    return "trained", str(job)


def evaluate_once(
    training: Path, job: Path, roots: Sequence[Path], overrides: Sequence[str]
) -> tuple[Path | None, bool]:
    """Evaluate the last weights of a training, unless that was done with the same overrides.

    Into the training's directory or, where that holds another evaluation, into the job's.

    Args:
        training, job: their directories.
        roots: folders of run directories to look for the evaluation in.
        overrides: of evaluate.yaml.

    Returns:
        The path of evaluate.json, None without a checkpoint; and whether it was made now.
    """
    weights = last_of(training).absolute()
    if not from_main_process(weights.exists):
        log.warning("%s holds no last.ckpt, so nothing is evaluated", training)
        return None, False
    # neither workers nor devices change results
    ignored = ("data.num_workers=", "trainer.")
    request = {"overrides": [o for o in overrides if not o.startswith(ignored)]}

    def find() -> tuple[str, bool]:
        for path in _files(roots, f"evaluation/{REQUEST}"):
            file = path.with_name("evaluate.json")
            if read_json(path) == request and file.exists():
                same = read_json(file)["checkpoint"] == str(weights)
                if same and file.stat().st_mtime >= weights.stat().st_mtime:
                    return str(path.parent), True
        free = not (training / "evaluation" / "evaluate.json").exists()
        return str((training if free else job) / "evaluation"), False

    name, done = from_main_process(find)
    folder = Path(name)
    _note(job, training, evaluation=folder / "evaluate.json")
    if not done:
        from lfvit.commands.evaluate import evaluate

        paths = [f"ckpt_path={weights}", f"run_dir={folder}", "overwrite=true"]
        evaluate(compose_config("evaluate", [*overrides, *paths]))
        if is_main_process():
            write_json(folder / REQUEST, request)
    return folder / "evaluate.json", not done


def _note(job: Path, training: Path, **what: Any) -> None:
    """Add to job.json, of a sweep's job or one whose training is elsewhere; paths are relative."""
    if is_main_process() and (training != job or (job / "job.json").exists()):
        paths = {k: os.path.relpath(v, job) if isinstance(v, Path) else v for k, v in what.items()}
        note(job, **paths)


def _files(roots: Sequence[Path], name: str) -> list[Path]:
    """In run directories below these folders, in order."""
    found = [[*root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")] for root in roots]
    return [path for paths in found for path in sorted(paths)]


def _is_done(folder: Path) -> bool:
    return read_json(folder / "run.json").get("status") == "done"


@contextmanager
def _held(lock: FileLock) -> Iterator[None]:
    """Wait for a lock and hold it; it ends with its process, however that ends."""
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waits for the process that trains the same settings (%s)", lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

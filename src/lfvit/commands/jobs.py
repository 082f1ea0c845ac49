"""One call of train.py: what is done already is found, what was interrupted is continued."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.errors import ConfigError
from lfvit.measure.schemas import Evaluation, read_evaluation
from lfvit.runs.directory import directory_lock
from lfvit.runs.identity import identity
from lfvit.runs.resume import AUTO, last_of
from lfvit.runs.sweeps import check_one_process, in_sweep, note
from lfvit.utils.atomic_io import read_json, write_json
from lfvit.utils.distributed import from_main_process, is_main_process, launched_together
from lfvit.utils.validation import check_switch

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train as the command line says.

    A single run trains. A job of a sweep looks for a training of the same identity first, among
    the runs beside its sweep, and evaluates the weights afterwards. ``repeat`` and ``evaluate``
    choose otherwise.

    Returns:
        The contents of metrics.json, and what `run_job` adds.

    Raises:
        LFViTError: anything the user can mend.
    """
    hydra_cfg = HydraConfig.get()
    sweep = in_sweep()
    repeat = not sweep if cfg.repeat is None else cfg.repeat
    evaluated = sweep if cfg.evaluate is None else cfg.evaluate
    check_switch("repeat", repeat)
    check_switch("evaluate", evaluated)
    if not sweep and repeat and not evaluated:
        return train(cfg)
    if not launched_together():  # those of torchrun and srun decide together
        where = "a multirun" if sweep else "a run with repeat=false or evaluate=true"
        check_one_process(cfg, where)
    root = Path(hydra_cfg.sweep.dir if sweep else hydra_cfg.run.dir).parent
    return run_job(cfg, root, repeat=repeat, evaluated=evaluated)


def run_job(cfg: DictConfig, root: Path, *, repeat: bool, evaluated: bool) -> dict[str, Any]:
    """Train and evaluate as far as that is not done already below ``root``.

    Of trainings with the same identity (see `lfvit.runs.identity.identity`) one runs at a time, in
    whatever process; the others wait for it and find it done. One that was interrupted is
    continued from its last checkpoint, in its own directory.

    Args:
        cfg: a composed training config; ``run_dir`` is the job's own directory.
        root: where to look: run directories lie one or two levels below it.
        repeat: train in any case.
        evaluated: whether evaluate.json has to be there as well, for the config's threshold.

    Returns:
        The contents of metrics.json, with ``status`` (see `lfvit.runs.sweeps.WELL`), ``directory``
        of the training, and ``evaluation``, the contents of evaluate.json or None.

    Raises:
        LFViTError: anything the user can mend.
    """
    job, key = Path(cfg.run_dir), identity(cfg)
    job.mkdir(parents=True, exist_ok=True)
    root = root.absolute()
    main = is_main_process()
    with _held(_lock(root, key)) if main else nullcontext():
        status, place = from_main_process(lambda: _what_to_do(cfg, root, key, repeat))
        folder = Path(place)
        if status == "already done":
            metrics = read_json(folder / "metrics.json")
        elif status == "continued":
            training = cfg.copy()
            training.run_dir, training.ckpt_path = str(folder), str(last_of(folder))
            training.init_from = None
            metrics = train(training)
        else:
            metrics = train(cfg)
        if main:
            note(job, directory=os.path.relpath(folder, job))
        found = None
        if evaluated:
            found, anew = _evaluate(cfg, folder, root, key)
            if anew and status == "already done":
                status = "evaluated"
    if main:
        note(job, status=status)
    return {**metrics, "status": status, "directory": str(folder), "evaluation": found}


def _what_to_do(cfg: DictConfig, root: Path, key: str, repeat: bool) -> tuple[str, str]:
    """What becomes of a job, see `lfvit.runs.sweeps.WELL`, and the directory of its training."""
    known = [] if repeat or cfg.ckpt_path not in (None, AUTO) else _runs(root, key)
    done, begun = _sort(known)
    if done:
        commit = read_json(done[0] / "metrics.json").get("commit")
        log.info("already done: %s (%s)", done[0], f"commit {commit}" if commit else "no commit")
        return "already done", str(done[0])
    if begun:
        folder = max(begun, key=lambda run: last_of(run).stat().st_mtime)
        log.info("continues %s", folder)
        return "continued", str(folder)
    if cfg.ckpt_path != AUTO:
        _check_free(Path(cfg.run_dir), key)
    return "trained", cfg.run_dir


def _evaluate(
    cfg: DictConfig, training: Path, root: Path, key: str
) -> tuple[Evaluation | None, bool]:
    """Evaluate the weights of a training at the config's threshold, unless that was done.

    Into the training's directory, or, where that holds an evaluation already, into the job's.
    """
    job, main = Path(cfg.run_dir), is_main_process()
    if not from_main_process(last_of(training).exists):  # trained without checkpoints
        log.warning("%s holds no last.ckpt, so nothing is evaluated", training)
        return None, False
    asked = {"identity": key, "threshold": cfg.threshold}
    place, done = from_main_process(lambda: _evaluation(training, job, root, asked))
    folder = Path(place)
    if main:
        note(job, evaluation=os.path.relpath(folder / "evaluate.json", job))
    if done:
        return read_evaluation(folder / "evaluate.json"), False
    evaluation = compose("evaluate")
    evaluation.ckpt_path, evaluation.run_dir = str(last_of(training).absolute()), str(folder)
    evaluation.threshold = cfg.threshold
    names = ("accelerator", "precision", *(("devices", "num_nodes") if launched_together() else ()))
    for name in names:
        if name in cfg.trainer:
            OmegaConf.update(evaluation, f"trainer.{name}", cfg.trainer[name], force_add=True)
    evaluation.data.num_workers = cfg.data.num_workers
    found = evaluate(evaluation)
    if main:
        write_json(folder / "asked.json", asked)
    return found, True


def _evaluation(training: Path, job: Path, root: Path, asked: Any) -> tuple[str, bool]:
    """The directory of the evaluation that is asked for, and whether it is there already."""
    for path in _files(root, "evaluation/asked.json"):
        file = path.with_name("evaluate.json")
        if read_json(path) == asked and file.exists() and _is_of(file, training):
            return str(path.parent), True
    free = not (training / "evaluation" / "evaluate.json").exists()
    return str((training if free else job) / "evaluation"), False


def _is_of(evaluation: Path, training: Path) -> bool:
    """Whether an evaluate.json is about the weights that are there now."""
    weights = last_of(training)
    same = read_json(evaluation)["checkpoint"] == str(weights.absolute())
    return same and evaluation.stat().st_mtime >= weights.stat().st_mtime


def _check_free(job: Path, key: str) -> None:
    """A sweep into the directory of an earlier one must not write over its runs."""
    there = read_json(job / "run.json")
    if there and (there["identity"] != key or _finished(job)):
        raise ConfigError(
            f"{job} holds another run; leave hydra.sweep.dir and hydra.run.dir out, or pass other "
            "ones"
        )


def _runs(root: Path, key: str) -> list[Path]:
    """Directories of the trainings with this identity, oldest names first."""
    return [p.parent for p in _files(root, "run.json") if read_json(p).get("identity") == key]


def _sort(runs: list[Path]) -> tuple[list[Path], list[Path]]:
    """Those that are finished, and those with a checkpoint to continue.

    Waits for those that are being trained, by a single run in another process.
    """
    for run in runs:
        if not _finished(run):
            with _held(directory_lock(run)):
                pass
    done = [run for run in runs if _finished(run)]
    return done, [run for run in runs if run not in done and last_of(run).exists()]


def _files(root: Path, name: str) -> list[Path]:
    return sorted([*root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")])


def _finished(folder: Path) -> bool:
    return read_json(folder / "run.json").get("status") == "done"


def _lock(root: Path, key: str) -> FileLock:
    """On all trainings of one identity, so that equal jobs take turns."""
    (root / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".locks" / f"{key}.lock")


@contextmanager
def _held(lock: FileLock) -> Iterator[None]:
    """Wait for a lock and hold it; it ends with its process, however that ends."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waits for the process that trains the same settings (%s)", lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

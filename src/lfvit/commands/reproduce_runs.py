"""The runs that artifacts need: composed, checked, and made once by `run_job`."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from lfvit.commands.jobs import evaluate_once, run_job
from lfvit.commands.train import check
from lfvit.errors import ConfigError, LFViTError, TrainingError
from lfvit.results.artifacts.settings import Artifact, Run, Scale
from lfvit.runs.identity import identity
from lfvit.runs.overrides import compose_config
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.runs.record import CheckpointRecord, make_record, model_overrides, override
from lfvit.runs.resume import last_of
from lfvit.runs.setup import build_model
from lfvit.utils.atomic_io import read_json
from lfvit.utils.signals import StopSignals
from lfvit.utils.validation import check_choice, validate

log = logging.getLogger(__name__)


class Planned(NamedTuple):
    """One seed of a run of conf/runs.

    Attributes:
        name, seed: of the run.
        start: key of the one whose weights it starts from, or evaluates as they are.
        folder: its directory.
        overrides: of train.py; empty for weights that are evaluated as they are.
        cfg: composed from `overrides`, without the start.
        evaluate: overrides of evaluate.py.
    """

    name: str
    seed: int
    start: str | None
    folder: Path
    overrides: list[str]
    cfg: DictConfig | None
    evaluate: list[str]

    @property
    def state(self) -> str:
        """As far as its directory tells: done, begun, or to do."""
        record, job = (read_json(self.folder / name) for name in ("run.json", "job.json"))
        if (self.folder / "evaluation" / "evaluate.json").exists() or "evaluation" in job:
            return "done"
        return "begun" if record else "to do"

    @property
    def origin(self) -> str | None:
        """A sentence about the weights it starts from."""
        if self.start is None:
            return None
        if self.cfg is None:
            return (
                f"the weights of {self.start} with {' '.join(self.evaluate)}, not trained further"
            )
        return f"{self.cfg.trainer.max_epochs} epochs from the weights of {self.start}"


class Done(NamedTuple):
    """directory: of the training whose weights were evaluated. evaluation: of evaluate.json."""

    directory: Path
    evaluation: Path


def key_of(name: str, seed: int) -> str:
    return f"{name}/seed{seed}"


def plan_runs(
    cfg: DictConfig, scale: Scale, runs: Mapping[str, Run], artifacts: Iterable[Artifact]
) -> dict[str, Planned]:
    """All runs of some artifacts, composed and checked while nothing has been trained.

    What the first artifact needs comes first: one seed of everything, then the next seed; each
    after the one it starts from.

    Returns:
        Key, see `key_of` -> run.

    Raises:
        ConfigError: naming the run and the setting.
    """
    planned: dict[str, Planned] = {}
    composed: dict[str, DictConfig] = {}
    left_out = scale.left_out(runs)

    def add(name: str, seed: int, above: tuple[str, ...] = ()) -> None:
        key = key_of(name, seed)
        if key in planned:
            return
        if name in above:
            raise ConfigError(f"runs: {', '.join(above)} start from each other")
        run = runs[name]
        start = run.start or (scale.starts.get(run.train[-1]) if run.train else None)
        if start is not None:
            check_choice(f"runs.{name}.start", start, [n for n, r in runs.items() if r.train])
            add(start, seed, (*above, name))
        folder = Path(cfg.output_dir) / "runs" / name / f"seed{seed}"
        try:
            training = _compose(cfg, scale, name, run, composed)
            if training is not None:
                training.seed, training.run_dir = seed, str(folder)
                if start is not None:
                    training.init_from = str(last_of(planned[key_of(start, seed)].folder))
                check(training, weights_exist=start is None)
            else:
                _check_evaluation(planned[key_of(str(start), seed)], run)
        except LFViTError as error:
            raise type(error)(f"run {name}: {error}") from error
        overrides = [*_overrides(cfg, scale, name, run), f"seed={seed}"] if run.train else []
        begins = None if start is None else key_of(start, seed)
        planned[key] = Planned(name, seed, begins, folder, overrides, training, run.evaluate)

    for artifact in artifacts:
        for seed, name in product(scale.seeds, artifact.runs):
            if name not in left_out:
                add(name, seed)
    return planned


def _overrides(cfg: DictConfig, scale: Scale, name: str, run: Run) -> list[str]:
    """Of train.py, without the seed."""
    overrides = list(scale.overrides)
    for word in run.train:
        if "=" not in word:
            check_choice(f"runs.{name}.train", word, scale.parts)
        overrides += [word] if "=" in word else scale.parts[word]
    root = [] if cfg.data_root is None else [f"data.root={cfg.data_root}"]
    return [*overrides, *root, *cfg.overrides, f"name={name}"]


def _compose(
    cfg: DictConfig, scale: Scale, name: str, run: Run, composed: dict[str, DictConfig]
) -> DictConfig | None:
    """The training config of a run, composed once for all seeds; None without a training."""
    if not run.train:
        return None
    if name not in composed:
        composed[name] = compose_config("train", _overrides(cfg, scale, name, run))
    return composed[name].copy()


def _check_evaluation(start: Planned, run: Run) -> None:
    """Build the model that is going to be evaluated."""
    evaluation = compose_config("evaluate", [*run.evaluate, "ckpt_path=start"])
    record = override(make_record(start.cfg, []), model_overrides(evaluation))  # type: ignore[arg-type]
    build_model(CheckpointRecord(**record), num_classes=2)


def prepare_folders(runs: Iterable[Planned], fresh: bool) -> None:
    """Refuse directories that hold something else; with `fresh`, remove what was made before.

    Raises:
        ConfigError: naming the directory, and how to go on. Nothing is removed then.
    """
    runs = [run for run in runs if run.folder.exists()]
    for run in runs:
        record = read_json(run.folder / "run.json")
        known = bool(record) or (run.folder / "job.json").exists()
        other = (
            record and not fresh and run.start is None and record["identity"] != identity(run.cfg)
        )
        if other or not known:
            raise ConfigError(
                f"{run.folder} holds something else than this run; pass another output_dir, or "
                "fresh=true to repeat the chosen runs in their places"
            )
    for run in runs if fresh else []:
        shutil.rmtree(run.folder)


def make_runs(
    runs: Mapping[str, Planned], reuse: Sequence[Path], jobs: int
) -> dict[str, Done | str]:
    """Train and evaluate every run, as far as that is not done; one failing run costs no other.

    Args:
        runs: each after the one it starts from.
        reuse: folders in which finished trainings of the same identity count.
        jobs: trainings at a time. What fails beside others is tried once more, alone.

    Returns:
        Key -> where its results are, or why it failed.
    """
    if jobs > 1:
        _train_side_by_side(runs, reuse, jobs)
    results: dict[str, Done | str] = {}
    for number, (key, run) in enumerate(runs.items(), 1):
        log.info("run %d of %d: %s", number, len(runs), key)
        results[key] = make_run(run, results.get(run.start or ""), reuse)
    return results


def _train_side_by_side(runs: Mapping[str, Planned], reuse: Sequence[Path], jobs: int) -> None:
    """Train and evaluate by train.py, several at a time.

    A signal stops those that are under way, each saving where it is, and starts no other.
    """
    finished = {
        record["identity"]: path.parent
        for root in reuse
        for path in root.glob("**/run.json")
        if (record := read_json(path)).get("status") == "done"
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // jobs)), **os.environ}
    processes: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def train(run: Planned, start: "Future[Path] | None") -> Path:
        cfg: Any = run.cfg.copy()  # type: ignore[union-attr]
        if start is not None:
            cfg.init_from = str(last_of(start.result()))
        if (key := identity(cfg)) in finished or stopped.is_set():
            return finished.get(key, run.folder)
        command = [sys.executable, str(PROJECT_ROOT / "train.py"), *run.overrides]
        command += ["repeat=false", "evaluate=true", f"hydra.run.dir={run.folder}"]
        command += [f"init_from={cfg.init_from or 'null'}"]
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "output.txt").open("ab") as file:
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
            status = processes[-1].wait()
        log.info("%s, seed %d: ended with status %d", run.name, run.seed, status)
        return run.folder

    with StopSignals(), ThreadPoolExecutor(jobs) as pool:
        futures: dict[str, Future[Path]] = {}
        try:
            # what waits for a start comes after what does not
            for key, run in sorted(runs.items(), key=lambda item: _depth(item[1], runs)):
                if run.cfg is not None:
                    futures[key] = pool.submit(train, run, futures.get(run.start or ""))
            wait(futures.values())
        except BaseException:  # a signal
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def _depth(run: Planned, runs: Mapping[str, Planned]) -> int:
    """How many trainings have to come before it."""
    return 0 if run.start is None else 1 + _depth(runs[run.start], runs)


def make_run(run: Planned, start: Done | str | None, reuse: Sequence[Path]) -> Done | str:
    """Train and evaluate one run, or say what went wrong.

    Args:
        start: what became of the run that it starts from.
        reuse: see `make_runs`.
    """
    roots = [run.folder.parents[1], *reuse]
    try:
        if isinstance(start, str):
            raise TrainingError(f"starts from {run.start}, which failed")
        if run.cfg is None:
            assert start is not None
            directory = start.directory
            run.folder.mkdir(parents=True, exist_ok=True)
            path, _ = evaluate_once(directory, run.folder, roots, run.evaluate)
        else:
            cfg = run.cfg.copy()
            cfg.init_from = None if start is None else str(last_of(start.directory))
            job = run_job(cfg, roots[0], reuse=reuse, overrides=run.overrides)
            directory, path = job.directory, job.evaluation
        if path is None:
            raise TrainingError("left no last.ckpt to evaluate; use callbacks=default")
        return Done(directory, path.parent)
    except Exception as error:  # whatever it is, it must not lose the other runs
        log.error("%s, seed %d, failed", run.name, run.seed, exc_info=error)
        return f"{type(error).__name__}: {error}"


def read_runs(cfg: Mapping[str, Any]) -> dict[str, Run]:
    """conf/runs, checked."""
    return {str(name): validate(Run, entry, f"runs.{name}") for name, entry in cfg.items()}

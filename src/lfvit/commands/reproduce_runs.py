"""The runs that artifacts need: composed, checked, and made once by `run_job`."""

import logging
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from lfvit.commands.jobs import Job, evaluate_once, run_job
from lfvit.commands.train import check
from lfvit.errors import ConfigError, LFViTError, TrainingError
from lfvit.results.artifacts.settings import Artifact, Run, Scale
from lfvit.runs.configs import check_names, compose_config
from lfvit.runs.identity import identity
from lfvit.runs.models import build_model
from lfvit.runs.record import CheckpointRecord, make_record, model_overrides, override
from lfvit.runs.resume import last_of
from lfvit.utils.atomic_io import read_json
from lfvit.utils.distributed import usable_cores
from lfvit.utils.error_messages import filter_warnings
from lfvit.utils.signals import StopSignals
from lfvit.utils.validation import check_choice

log = logging.getLogger(__name__)


class Planned(NamedTuple):
    """One seed of a run of conf/runs.

    start: key of the one whose weights it starts from, or evaluates as they are. teacher: of the
    one it is taught by. folder: its directory. overrides: of train.py, and cfg, composed from them;
    None without a training. evaluate: overrides of evaluate.py.
    """

    start: str | None
    teacher: str | None
    folder: Path
    overrides: list[str]
    cfg: DictConfig | None
    evaluate: list[str]

    @property
    def needs(self) -> list[str]:
        """Keys of the runs that come before it."""
        return [key for key in (self.start, self.teacher) if key is not None]

    @property
    def origin(self) -> str | None:
        """The weights it starts from, in words."""
        if self.cfg is None:
            return (
                f"the weights of {self.start} with {' '.join(self.evaluate)}, not trained further"
            )
        epochs = self.cfg.trainer.max_epochs
        return self.start and f"{epochs} epochs from the weights of {self.start}"


Outcome = Job | str
"""What became of a run, or why it failed."""


def key_of(name: str, seed: int) -> str:
    return f"{name}/seed{seed}"


def folder_of(output: str | Path, name: str, seed: int) -> Path:
    return Path(output) / "runs" / name / f"seed{seed}"


def is_made(folder: Path) -> bool:
    """Whether a run is evaluated in its directory, or refers to where it was."""
    return any((folder / name).exists() for name in ("evaluation", "job.json"))


def number_of_jobs(jobs: int | str) -> int:
    """Of auto: one on a GPU, else one for each core, at most four."""
    if jobs == "auto":
        return 1 if torch.cuda.is_available() else min(usable_cores(), 4)
    return int(jobs)


def plan_runs(
    cfg: DictConfig,
    scale: Scale,
    runs: Mapping[str, Run],
    artifacts: Iterable[Artifact],
    left_out: Container[str],
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
    trained = [name for name, run in runs.items() if run.train]

    def add(name: str, seed: int, above: tuple[str, ...] = ()) -> str:
        key, run = key_of(name, seed), runs[name]
        if name in above:
            raise ConfigError(f"runs: {', '.join(above)} start from each other")
        if key in planned:
            return key
        before = {
            "start": run.start or scale.starts.get(_parts(run)[-1]),
            "teacher": run.teacher,
        }
        for role, other in before.items():
            if other is not None:
                check_choice(f"runs.{name}.{role}", other, trained)
                before[role] = add(other, seed, (*above, name))
        start, teacher = before["start"], before["teacher"]
        folder = folder_of(cfg.output_dir, name, seed)
        overrides = _overrides(cfg, scale, name, run.train, seed) if run.train else []
        try:
            training = compose_config("train", overrides) if run.train else None
            first = seed == scale.seeds[0]  # the others have the same settings
            if training is None and first:
                begun: Any = planned[str(start)].cfg
                evaluation = compose_config("evaluate", [*run.evaluate, "ckpt_path=start"])
                record = override(make_record(begun, []), model_overrides(evaluation))
                build_model(CheckpointRecord(**record), num_classes=2)
            elif training is not None:
                training.run_dir = str(folder)
                if start is not None:
                    training.init_from, training.pretrained = (
                        str(last_of(planned[start].folder)),
                        False,
                    )
                checked = training.copy()
                if teacher is not None:  # whose weights are not there yet
                    training.schedule.teacher = str(last_of(planned[teacher].folder))
                    checked.schedule.distill_weight = 0.0
                if first:
                    check_names(checked)
                    check(checked, weights_exist=start is None)
        except LFViTError as error:
            raise type(error)(f"run {name}: {error}") from error
        planned[key] = Planned(start, teacher, folder, overrides, training, run.evaluate)
        return key

    for artifact in artifacts:
        for seed, name in product(scale.seeds, artifact.runs):
            if name not in left_out:
                add(name, seed)
    return planned


def _parts(run: Run) -> list[str]:
    """The words of a run that name parts of the scale, without its own overrides."""
    return [word for word in run.train if "=" not in word] or [""]


def _overrides(
    cfg: DictConfig, scale: Scale, name: str, train: Sequence[str], seed: int
) -> list[str]:
    """Of train.py: those of the scale and its parts, of the run, and of the command line."""
    overrides = list(scale.overrides)
    for word in train:
        if "=" not in word:
            check_choice(f"runs.{name}.train", word, scale.parts)
        overrides += [word] if "=" in word else scale.parts[word]
    root = [] if cfg.data_root is None else [f"data.root={cfg.data_root}"]
    return [*overrides, *root, *cfg.overrides, f"name={name}", f"seed={seed}"]


def prepare_folders(runs: Iterable[Planned], fresh: bool) -> None:
    """Refuse directories that hold something else; with `fresh`, remove what was made before.

    Raises:
        ConfigError: naming the directory, and how to go on. Nothing is removed then.
    """
    runs = [run for run in runs if run.folder.exists()]
    for run in runs:
        record = read_json(run.folder / "run.json")
        known = record or (run.folder / "job.json").exists()
        same = fresh or run.start or record.get("identity") in (None, identity(run.cfg))  # type: ignore[arg-type]
        if not known or not same:
            raise ConfigError(
                f"{run.folder} holds something else than this run; pass another output_dir, or "
                "fresh=true to repeat the chosen runs in their places"
            )
    for run in runs if fresh else []:
        shutil.rmtree(run.folder)


def make_runs(runs: Mapping[str, Planned], reuse: Sequence[Path], jobs: int) -> dict[str, Outcome]:
    """Train and evaluate every run, as far as that is not done; one failing run costs no other.

    Args:
        runs: each after the one it starts from.
        reuse: folders in which finished trainings of the same identity count.
        jobs: runs at a time, each in a process.
    """
    outcomes = _make_side_by_side(runs, reuse, jobs) if jobs > 1 else {}
    for number, (key, run) in enumerate(runs.items(), 1):
        if key not in outcomes:
            log.info("run %d of %d: %s", number, len(runs), key)
            outcomes[key] = make_run(run, {need: outcomes[need] for need in run.needs}, reuse)
    return {key: outcomes[key] for key in runs}


def _make_side_by_side(
    runs: Mapping[str, Planned], reuse: Sequence[Path], jobs: int
) -> dict[str, Outcome]:
    """Those that ended; all, unless a process was killed. A signal stops those that are under way,
    each saving where it is, and starts no other.
    """
    outcomes: dict[str, Outcome] = {}
    waiting, running = dict(runs), dict[Future[Outcome], str]()
    threads = max(1, usable_cores() // jobs)
    # before a process imports PyTorch, which warns then
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), filter_warnings)
    with StopSignals(), pool:
        try:
            while waiting or running:
                ready = [key for key, run in waiting.items() if outcomes.keys() >= {*run.needs}]
                for key in ready[: jobs - len(running)]:
                    run = waiting.pop(key)
                    before = {need: outcomes[need] for need in run.needs}
                    running[pool.submit(_make_apart, threads, run, before, reuse)] = key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    outcomes[key := running.pop(future)] = future.result()
                    log.info("%d of %d: %s", len(outcomes), len(runs), key)
        except BrokenProcessPool:
            log.warning("a process was killed; the rest is made one after the other")
        except BaseException:
            for process in active_children():
                process.terminate()
            raise
    return outcomes


def _make_apart(threads: int, *args: Any) -> Outcome:
    torch.set_num_threads(threads)
    return make_run(*args)


def make_run(run: Planned, before: Mapping[str, Outcome], reuse: Sequence[Path]) -> Outcome:
    """Train and evaluate one run; `before` has the outcomes of those it needs."""
    root = run.folder.parents[1]
    try:
        done = {key: job for key, job in before.items() if not isinstance(job, str)}
        if failed := before.keys() - done:
            raise TrainingError(f"needs {', '.join(failed)}, which failed")
        start, teacher = done.get(run.start or ""), done.get(run.teacher or "")
        if run.cfg is None:
            assert start is not None
            run.folder.mkdir(parents=True, exist_ok=True)
            path, _ = evaluate_once(start.directory, run.folder, [root, *reuse], run.evaluate)
            job = start._replace(evaluation=path)
        else:
            cfg = run.cfg.copy()
            if start is not None:
                cfg.init_from = str(last_of(start.directory))
            if teacher is not None:
                cfg.schedule.teacher = str(last_of(teacher.directory))
            job = run_job(cfg, root, reuse=reuse, overrides=run.overrides)
        if job.evaluation is None:
            raise TrainingError("left no last.ckpt to evaluate; use callbacks=default")
        return job
    except Exception as error:  # whatever it is, it must not lose the other runs
        log.error("%s failed", run.folder, exc_info=error)
        return f"{type(error).__name__}: {error}"

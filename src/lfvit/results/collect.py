"""Any set of run folders as one collection, and a list of what was left out.

A run is an evaluation, evaluate.json, with the training its weights come from. Its rows in the
table are its operating points. Images per second come from what benchmark.py measured.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lfvit.data.images import printable
from lfvit.errors import DataError
from lfvit.measure.predictions import FILE, read_predictions
from lfvit.measure.schemas import Evaluation, parse_evaluation
from lfvit.results.files import SCHEMAS, read_file
from lfvit.results.names import with_names
from lfvit.results.provenance import describe_start, run_folder
from lfvit.results.speed import read_benchmarks
from lfvit.results.table import make_table
from lfvit.runs.directory import inside
from lfvit.runs.identity import NOT_WEIGHTS
from lfvit.runs.sweeps import WELL
from lfvit.utils.paths import program

FILES = {"evaluate.json", *SCHEMAS}
MAX_REASON = 300  # characters
NO_SETTING = {"seed", *(name.rpartition(".")[2] for name in NOT_WEIGHTS)}
"""What runs of one group may differ in."""


class Skipped(NamedTuple):
    """A folder without a result that can be shown."""

    path: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One evaluation and the training behind it.

    folder: of evaluate.json. path: the same, from the folder that all runs are in.
    evaluation_config: config.yaml of evaluate.py. config, metrics, environment, status: of the
    training, empty where it is not there. start: its initial weights in words. label: the name
    that the caller gave. settings_key: all settings, the same for every seed of a model.
    model, name: see `with_names`.
    """

    folder: Path
    path: str
    evaluation: Evaluation
    evaluation_config: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    status: str = "done"
    start: str = ""
    label: str | None = None
    settings_key: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    name: str = ""

    @property
    def group(self) -> str:
        """Eight letters, the same for runs that differ in their seed alone."""
        text = json.dumps(self.settings_key, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def seed(self) -> int | None:
        """The training's."""
        return self.config.get("seed")

    @property
    def data(self) -> str:
        """Name of the data set."""
        return self.evaluation.data

    @property
    def checkpoint(self) -> Path:
        """The evaluated weights, also where the run folder was moved."""
        path = Path(self.evaluation.checkpoint)
        moved = [folder / "checkpoints" / path.name for folder in self.folder.parents[:3]]
        return next((known for known in (path, *moved) if known.exists()), path)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per image, of predictions.parquet; a DataError if it is missing or damaged."""
        predictions = read_predictions(self.folder / FILE)
        if f"prediction_{self.num_passes}" != predictions.columns[-2]:
            raise DataError(
                f"{self.folder / FILE}: not of {self.num_passes} passes, as evaluate.json beside "
                "it; evaluate again"
            )
        return predictions

    @property
    def num_passes(self) -> int:
        return len(self.evaluation.passes)

    @property
    def is_plain(self) -> bool:
        """One pass and no token reducer: what costs are compared with."""
        return self.num_passes == 1 and self.evaluation.reducer["name"] == "none"


@dataclass(frozen=True)
class Collection:
    """What is in some folders: runs, what benchmark.py measured, and what was left out."""

    runs: list[Run]
    skipped: list[Skipped]
    benchmarks: pd.DataFrame

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per run and operating point, see `make_table`."""
        return make_table(self.runs, self.benchmarks)

    @property
    def data(self) -> list[tuple[str, int]]:
        """Names of the data sets, with the number of images."""
        return sorted({(run.data, run.evaluation.images) for run in self.runs})

    def by_model(self) -> dict[str, list[Run]]:
        """Name of a model -> its runs, one per seed, in the order of the seeds."""
        models: dict[str, dict[int | None, Run]] = {}
        for run in self.runs:
            models.setdefault(run.model, {}).setdefault(run.seed, run)
        return {
            model: sorted(seeds.values(), key=lambda run: (run.seed is None, run.seed or 0))
            for model, seeds in models.items()
        }

    def require_runs(self) -> None:
        """Raise a DataError that lists what was left out, unless there is a run."""
        if not self.runs:
            lines = ["no evaluated run: evaluate.py writes what is collected here"]
            lines += [f"  {path}: {reason}" for path, reason in self.skipped]
            raise DataError("\n".join(lines))


def collect(
    folders: Sequence[Path], label: Callable[[Path], str | None] = lambda folder: None
) -> Collection:
    """Read run folders, sweep folders, or any folders above them.

    Nothing that is broken stops the rest: it is listed in `Collection.skipped`. A job of a sweep
    that used an evaluation elsewhere brings that one along.

    Args:
        folders: where to search.
        label: folder of an evaluation -> name of its model, the same for all of its seeds; None
            for a name from method and settings.

    Raises:
        DataError: a folder is not there.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder; name run folders or folders above them")
    roots = [Path(folder).resolve() for folder in folders]
    reader = _Reader(Path(os.path.commonpath([root.parent for root in roots])))
    found: dict[Path, None] = {}
    for root in roots:
        files = [path for path in root.rglob("*") if path.name in FILES]
        for folder in sorted({path.parent for path in files if ".hydra" not in path.parts}):
            used = reader.evaluation_of_job(folder)
            found |= {folder: None} | ({used: None} if used else {})
    runs = [run for path in found if (run := reader.read_run(path, label(path))) is not None]
    evaluated = {training_folder(run.folder, run.evaluation) for run in runs}
    for path in found:
        if reason := reader.reason(path, path in evaluated):
            reader.skip(path, reason)
    benchmarks = [reader.load(path / "benchmark.json") for path in found]
    timed = read_benchmarks(filter(None, benchmarks))
    return Collection(with_names(runs), sorted(set(reader.skipped)), timed)


class _Reader:
    """Reads files of run folders and lists what is skipped. base: what paths are relative to."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.skipped: list[Skipped] = []

    def path(self, folder: Path) -> str:
        return printable(Path(os.path.relpath(folder, self.base)).as_posix())

    def skip(self, folder: Path, reason: str) -> None:
        self.skipped.append(Skipped(self.path(folder), " ".join(reason.split())[:MAX_REASON]))

    def load(self, path: Path | None) -> dict[str, Any]:
        """The content of a file; empty where there is none or, with an entry, it is broken."""
        if path is None or not os.path.exists(path):  # False for names too long, unlike Path's
            return {}
        try:
            return read_file(path)
        except ValueError as error:
            self.skip(path.parent, f"{path.name}: {error}")
            return {}

    def evaluation_of_job(self, folder: Path) -> Path | None:
        """The folder of the evaluation that a job of a sweep used, see `lfvit.runs.sweeps`."""
        name = self.load(folder / "job.json").get("evaluation")
        path = None if name is None else inside(folder, name)
        if path is None or path.name != "evaluate.json" or not os.path.isfile(path):
            return None
        return path.parent

    def read_run(self, folder: Path, label: str | None) -> Run | None:
        """The run whose evaluation is in a folder, if there is one that can be read."""
        content = self.load(folder / "evaluate.json")
        if not content:
            return None
        try:
            evaluation = parse_evaluation(content, "evaluate.json")
        except DataError as error:
            self.skip(folder, str(error))
            return None
        training = training_folder(folder, evaluation)
        files = ("config.yaml", "metrics.json", "environment.json", "run.json")
        config, metrics, environment, record = (
            self.load(training / name if training else None) for name in files
        )
        weights = config.get("init_from")
        start = run_folder(weights, training) if training and weights else None
        before, trained = (self.load(start / name if start else None) for name in files[:2])
        evaluation_config = self.load(folder / "config.yaml")
        rules = evaluation.settings.model_dump()
        if evaluation_config:  # a threshold that the training chose is a result, no setting
            rules["threshold"] = evaluation_config.get("threshold")
        model = evaluation.model_dump(include={"method", "backbone", "reducer", "image_size"})
        settings_key = {  # in the order in which differences are named
            "label": label,
            "model": model,
            "training": self.settings(training, config) if training else {},
            "weights": None if config else evaluation.checkpoint,
            "evaluation": {"data": evaluation.data, **rules},
        }
        return Run(
            folder=folder,
            path=self.path(folder),
            evaluation=evaluation,
            evaluation_config=evaluation_config,
            config=config,
            metrics=metrics,
            environment=environment,
            status=record.get("status") or "done",
            start=describe_start(config, before, trained) if config else "",
            label=label,
            settings_key=settings_key,
        )

    def settings(self, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """Of a training, without its seed; in place of weights of other runs, these runs' own."""
        named = {
            "init_from": config.get("init_from"),
            "teacher": (config.get("schedule") or {}).get("teacher"),
        }
        found = {key: run_folder(path, folder) for key, path in named.items() if path}
        others = {
            key: self.settings(run, self.load(run / "config.yaml"))
            for key, run in found.items()
            if run is not None and run.resolve() != folder.resolve()
        }
        return _without(config, NO_SETTING | others.keys()) | others

    def reason(self, folder: Path, evaluated: bool) -> str | None:
        """Why a folder has no result: its run failed, goes on, or was not evaluated."""
        job, run = self.load(folder / "job.json"), self.load(folder / "run.json")
        trained, path = (folder / "metrics.json").exists(), self.path(folder)
        for record in (job, run):
            if record.get("status") == "failed":
                return f"failed: {(record.get('error') or 'no reason is recorded').splitlines()[0]}"
        if trained and not evaluated:
            paths = [f"ckpt_path={path}", f"hydra.run.dir={path}/evaluation"]
            return f"not evaluated: {program('evaluate')} {shlex.join(paths)}"
        config = self.load(folder / "config.yaml")
        started = "schedule" in config and not trained
        started = started or ("risk" in config and not (folder / "evaluate.json").exists())
        if job.get("status", "done") not in WELL or started:
            return "not finished: still running, or stopped from outside"
        return None


def _without(settings: Any, names: Set[str]) -> Any:
    """Nested settings without those of some names, at any level."""
    if not isinstance(settings, dict):
        return settings
    return {k: _without(value, names) for k, value in settings.items() if k not in names}


def training_folder(folder: Path, evaluation: Evaluation) -> Path | None:
    """The folder of the training whose weights were evaluated, if it is still there.

    Around a copied evaluation, the copy of its training comes before the original.
    """
    original = Path(evaluation.checkpoint).parent.parent
    above = list(folder.parents[:3])
    copies = [candidate for candidate in above if candidate.name == original.name]
    for candidate in (*copies, original, *above):
        if os.path.exists(candidate / "metrics.json"):
            return candidate.resolve()
    moved = run_folder(evaluation.checkpoint, folder)
    return None if moved is None else moved.resolve()

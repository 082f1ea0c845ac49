"""Any set of run folders as one collection, and a list of what was left out.

A run is an evaluation, evaluate.json, with the training its weights come from. Its rows in the
table are its operating points. Images per second come from what benchmark.py measured.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lfvit.errors import DataError
from lfvit.measure.predictions import FILE, read_predictions
from lfvit.measure.schemas import Evaluation, parse_evaluation
from lfvit.results.files import SCHEMAS, read_file
from lfvit.results.names import with_names
from lfvit.results.provenance import MAX_STARTS, describe_start, start_folder
from lfvit.results.table import make_table
from lfvit.results.throughput import Throughput
from lfvit.runs.directory import inside
from lfvit.runs.identity import NOT_WEIGHTS
from lfvit.runs.sweeps import WELL

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
        """Name of the data set: of its folder, or of the class that generates it."""
        configs = (self.evaluation_config, self.config)
        groups = [config.get("data") for config in configs]
        roots = [group.get("root") for group in groups if isinstance(group, dict)]
        return next((Path(str(root)).name for root in roots if root), self.evaluation.data)

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
        return self.num_passes == 1 and self.evaluation.reducer.get("name", "none") == "none"


@dataclass(frozen=True)
class Collection:
    """What is in some folders: runs, measured throughput, and what was left out."""

    runs: list[Run]
    skipped: list[Skipped]
    throughput: list[Throughput]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per run and operating point, see `make_table`."""
        return make_table(self.runs, self.throughput)

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
    base = Path(os.path.commonpath([root.parent for root in roots])) if roots else Path()
    return _Reader(base, label).read(list(dict.fromkeys(_walk(roots))))


def _walk(roots: Iterable[Path]) -> Iterator[Path]:
    """Every folder that holds one of `FILES`."""
    for root in roots:
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if name != "checkpoints" and name[0] != ".")
            if not FILES.isdisjoint(files):
                yield Path(folder)


class _Reader:
    def __init__(self, base: Path, label: Callable[[Path], str | None]) -> None:
        self.base, self.label = base, label
        self.skipped: list[Skipped] = []

    def read(self, folders: list[Path]) -> Collection:
        used = [(folder, self._evaluation_of_job(folder)) for folder in folders]
        folders = list(dict.fromkeys(path for pair in used for path in pair if path is not None))
        runs = [run for folder in folders if (run := self._read_run(folder)) is not None]
        evaluated = {_training_folder(run.folder, run.evaluation) for run in runs}
        for folder in folders:
            if reason := self._reason(folder, folder in evaluated):
                self._skip(folder, reason)
        throughput = [
            Throughput(content, self._load(folder / "config.yaml"))
            for folder in folders
            if (content := self._load(folder / "benchmark.json"))
        ]
        return Collection(with_names(runs), sorted(set(self.skipped)), throughput)

    def _path(self, folder: Path) -> str:
        return Path(os.path.relpath(folder, self.base)).as_posix()

    def _skip(self, folder: Path, reason: str) -> None:
        self.skipped.append(Skipped(self._path(folder), " ".join(reason.split())[:MAX_REASON]))

    def _load(self, path: Path) -> dict[str, Any]:
        """The content of a file; empty where there is none or, with an entry, it is broken."""
        if not os.path.exists(path):  # False for names too long, unlike Path's
            return {}
        try:
            return read_file(path)
        except (OSError, ValueError) as error:
            self._skip(path.parent, f"{path.name}: {error}")
            return {}

    def _evaluation_of_job(self, folder: Path) -> Path | None:
        """The folder of the evaluation that a job of a sweep used, see `lfvit.runs.sweeps`."""
        name = self._load(folder / "job.json").get("evaluation")
        path = None if name is None else inside(folder, name)
        known = path is not None and path.name == "evaluate.json" and os.path.isfile(path)
        return path.parent if path is not None and known else None

    def _read_run(self, folder: Path) -> Run | None:
        content = self._load(folder / "evaluate.json")
        if not content:
            return None
        try:
            evaluation = parse_evaluation(content, "evaluate.json")
        except DataError as error:
            self._skip(folder, str(error))
            return None
        training = _training_folder(folder, evaluation)
        config = self._load(training / "config.yaml") if training else {}
        evaluation_config = self._load(folder / "config.yaml")
        label = self.label(folder)
        model = evaluation.model_dump(include={"method", "backbone", "reducer", "image_size"})
        return Run(
            folder=folder,
            path=self._path(folder),
            evaluation=evaluation,
            evaluation_config=evaluation_config,
            config=config,
            metrics=self._load(training / "metrics.json") if training else {},
            environment=self._load(training / "environment.json") if training else {},
            status=self._load(training / "run.json").get("status", "done") if training else "done",
            start=describe_start(config, training, self._load) if training else "",
            label=label,
            settings_key={  # in the order in which differences are named
                **({"label": label} if label else {}),
                "model": model,
                "training": self._settings(config, training or folder),
                **({} if config else {"weights": evaluation.checkpoint}),
                "evaluation": {
                    **self._settings(evaluation_config, folder),
                    "threshold": evaluation.configured.threshold,
                },
            },
        )

    def _settings(
        self, config: Mapping[str, Any], folder: Path, most: int = MAX_STARTS
    ) -> dict[str, Any]:
        """A config without `NO_SETTING`; initial weights of a known run are that run's settings."""

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: clean(v) for k, v in value.items() if k not in NO_SETTING}
            return value

        settings = clean(dict(config))
        if config.get("init_from"):
            earlier = start_folder(config, folder)
            start = self._load(earlier / "config.yaml") if most else {}
            if start:
                settings["init_from"] = self._settings(start, earlier, most - 1)
        return settings

    def _reason(self, folder: Path, evaluated: bool) -> str | None:
        """Why a folder has no result: its run failed, goes on, or was not evaluated."""
        job, run = self._load(folder / "job.json"), self._load(folder / "run.json")
        config = self._load(folder / "config.yaml")
        trained, path = (folder / "metrics.json").exists(), self._path(folder)
        for record in (job, run):
            if record.get("status") == "failed":
                reason = record.get("error") or "no reason is recorded"
                return f"failed: {reason.splitlines()[0]}"
        if job.get("status", "done") not in WELL:
            return "unfinished job: still running, or stopped from outside"
        if trained and not evaluated:
            return (
                f"not evaluated: python evaluate.py ckpt_path={path}/checkpoints/last.ckpt "
                f"hydra.run.dir={path}/evaluation"
            )
        if "schedule" in config and not trained:
            if run.get("status") == "running":
                return "still running, or stopped from outside"
            return "not finished: no metrics.json of train.py"
        if "risk" in config and not (folder / "evaluate.json").exists():
            return "not finished: no evaluate.json"
        return None


def _training_folder(folder: Path, evaluation: Evaluation) -> Path | None:
    """The folder of the training whose weights were evaluated, if it is still there.

    Around a copied evaluation, the copy of its training comes before the original.
    """
    original = Path(evaluation.checkpoint).parent.parent
    above = list(folder.parents[:3])
    copies = [candidate for candidate in above if candidate.name == original.name]
    for candidate in (*copies, original, *above):
        if os.path.exists(candidate / "metrics.json"):
            return candidate.resolve()
    return None

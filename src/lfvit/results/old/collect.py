"""Any set of run directories as one collection, and a list of what could not be read.

A run is an evaluation, evaluate.json, with the training its weights come from. Its rows in the
table are its operating points. Speeds come from what benchmark.py and reproduce.py measured.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lfvit.errors import DataError
from lfvit.results.old import shapes
from lfvit.results.old.evaluated import Run, named
from lfvit.results.old.frame import make_table, over_seeds
from lfvit.results.old.origins import MOST, origin, start_of
from lfvit.results.old.speeds import Speeds
from lfvit.runs.directory import inside
from lfvit.runs.sweeps import WELL

RESULTS = (
    "config.yaml",
    "run.json",
    "metrics.json",
    "evaluate.json",
    "benchmark.json",
    "job.json",
)
LONGEST = 300  # characters of a reason
NOT_A_SETTING = ("seed", "name", "run_dir", "ckpt_path", "logger", "callbacks", "num_workers")
"""What two runs of one group may differ in: seed, names, places, and what only reports."""


class Skipped(NamedTuple):
    """A place without a result that can be shown, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """What lies in some folders: runs, measured speeds, and what could not be read."""

    runs: list[Run]
    skipped: list[Skipped]
    speeds: list[Speeds]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per run and operating point, see `make_table`."""
        return make_table(self.runs, self.speeds)


def collect(
    folders: Sequence[Path], names: Callable[[Path], str | None] | None = None
) -> Collection:
    """Read run directories, sweep directories, or any folders above them.

    Nothing that is broken stops the rest: it is listed in `Collection.skipped`. A job of a sweep
    that found its evaluation elsewhere brings that one along.

    Args:
        folders: where to look.
        names: folder of an evaluation -> what to call its model, the same for all of its seeds;
            None for one that is named by its settings, as all are without ``names``.

    Raises:
        DataError: a folder is not there.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder; name run directories or folders above them")
    roots = [Path(folder).resolve() for folder in folders]
    base = Path(os.path.commonpath([root.parent for root in roots])) if roots else Path()
    reader = _Reader(base, names)
    return reader.read(list(dict.fromkeys(reader.with_evaluations(_walk(roots)))))


def _walk(roots: Iterable[Path]) -> Iterator[Path]:
    """Every folder with a result in it."""
    for root in roots:
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if name != "checkpoints" and name[0] != ".")
            if not set(RESULTS).isdisjoint(files):
                yield Path(folder)


class _Reader:
    def __init__(self, base: Path, names: Callable[[Path], str | None] | None) -> None:
        self.base, self.names = base, names
        self.skipped: list[Skipped] = []

    def with_evaluations(self, folders: Iterable[Path]) -> Iterator[Path]:
        """The folders, and after each the one where a job found its evaluation, see `sweeps`."""
        for folder in folders:
            yield folder
            evaluation = self._load(folder / "job.json").get("evaluation")
            place = None if evaluation is None else inside(folder, str(evaluation))
            if place is not None and place.name == "evaluate.json" and os.path.isfile(place):
                yield place.parent

    def read(self, folders: list[Path]) -> Collection:
        runs = [run for folder in folders if (run := self._run(folder)) is not None]
        evaluated = {_training_of(run.folder, run.evaluation) for run in runs}
        for folder in folders:
            self._explain(folder, folder in evaluated)
        speeds = [speed for folder in folders for speed in self._speeds(folder)]
        return Collection(named(runs), sorted(set(self.skipped)), speeds)

    def _place(self, folder: Path) -> str:
        return Path(os.path.relpath(folder, self.base)).as_posix()

    def _load(self, path: Path) -> dict[str, Any]:
        """A file's contents; empty where there is none or, with an entry, it is broken."""
        if not os.path.exists(path):  # False for names too long, unlike Path's
            return {}
        try:
            return shapes.load(path)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:LONGEST]
        self.skipped.append(Skipped(self._place(path.parent), f"{path.name}: {reason}"))
        return {}

    def _run(self, folder: Path) -> Run | None:
        evaluation = self._load(folder / "evaluate.json")
        if not evaluation:
            return None
        run = Run(folder, self._place(folder), evaluation, self._load(folder / "config.yaml"))
        run = replace(run, given=None if self.names is None else self.names(folder))
        training = _training_of(folder, evaluation)
        if training is not None:
            config = self._load(training / "config.yaml")
            run = replace(
                run,
                start=start_of(config, training, self._load),
                metrics=self._load(training / "metrics.json"),
                environment=self._load(training / "environment.json"),
                config=config,
                status=str(self._load(training / "run.json").get("status", "done")),
            )
        return replace(run, key=json.dumps(self._key(run)))

    def _key(self, run: Run) -> dict[str, Any]:
        """Everything that was set, except `NOT_A_SETTING`.

        The threshold counts as the evaluation used it: no training depends on it.
        """
        given = {} if run.given is None else {"name": run.given}
        threshold = (run.evaluation.get("operating_point") or {}).get("threshold")
        model = {k: run.evaluation.get(k) for k in ("method", "backbone", "reducer", "image_size")}
        weights = {} if run.config else {"weights": str(run.evaluation.get("checkpoint"))}
        training = self._clean(run.config, _training_of(run.folder, run.evaluation) or run.folder)
        training.pop("threshold", None)
        return {  # in the order in which differences are named
            **given,
            "model": model,
            "training": training,
            **weights,
            "evaluation": self._clean(run.settings, run.folder) | {"threshold": threshold},
        }

    def _clean(self, config: Mapping[str, Any], folder: Path, most: int = MOST) -> dict[str, Any]:
        """A config without what is no setting; weights of a known run are that run's settings.

        The run may have started from another one, and so on, `most` times.
        """

        def clean(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: clean(v) for k, v in value.items() if k not in NOT_A_SETTING}
            return value

        found = clean(config)
        if config.get("init_from"):
            earlier = origin(config, folder)
            start = self._load(earlier / "config.yaml") if most else {}
            found["init_from"] = (
                self._clean(start, earlier, most - 1) if start else str(config["init_from"])
            )
        return found

    def _explain(self, folder: Path, evaluated: bool) -> None:
        """Lists a folder whose run failed, goes on, or was not evaluated."""
        about = self._load(folder / "run.json")
        status = about.get("status")
        config = self._load(folder / "config.yaml")
        trained, place = (folder / "metrics.json").exists(), self._place(folder)
        job = self._load(folder / "job.json")
        ended = job.get("status", "done")
        if ended == "failed":
            error = str(job.get("error") or "job.json gives no reason").splitlines()[0]
            self.skipped.append(Skipped(place, f"failed: {error}"))
        elif ended not in WELL:
            self.skipped.append(
                Skipped(place, "unfinished job: still running, or stopped from outside")
            )
        elif status == "failed":
            reason = about.get("reason") or about.get("error") or "run.json gives no reason"
            self.skipped.append(Skipped(place, f"failed: {str(reason).splitlines()[0]}"))
        elif trained and not evaluated:
            self.skipped.append(
                Skipped(
                    place,
                    f"not evaluated: python evaluate.py ckpt_path={place}/checkpoints/last.ckpt "
                    f"hydra.run.dir={place}/evaluation",
                )
            )
        elif "schedule" in config and not trained:
            running = "still running, or stopped from outside" if status == "running" else ""
            self.skipped.append(
                Skipped(place, running or "not finished: holds no metrics.json of train.py")
            )
        elif "calibration_seed" in config and not (folder / "evaluate.json").exists():
            self.skipped.append(Skipped(place, "not finished: holds no evaluate.json"))

    def _speeds(self, folder: Path) -> Iterator[Speeds]:
        benchmark = self._load(folder / "benchmark.json")
        if benchmark:
            yield Speeds(benchmark, self._load(folder / "config.yaml"))


def _training_of(folder: Path, evaluation: Mapping[str, Any]) -> Path | None:
    """The directory of the training whose weights were evaluated, if it is still there.

    Around a copied evaluation, the copy of its training comes before the original.
    """
    named = Path(str(evaluation.get("checkpoint"))).parent.parent
    around = list(folder.parents[:3])
    for candidate in (*(above for above in around if above.name == named.name), named, *around):
        if os.path.exists(candidate / "metrics.json"):
            return candidate.resolve()
    return None


def write_table(found: Collection, output: Path, *, mean: bool = False) -> None:
    """Write the table as .csv or .parquet.

    Args:
        found: see `collect`.
        output: its suffix decides.
        mean: one row per group and operating point instead of one per run, see `over_seeds`.

    Raises:
        DataError: there is nothing to write.
    """
    if not found.runs:
        raise DataError(nothing_found(found))
    table = over_seeds(found.table) if mean else found.table
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".parquet":
        table.to_parquet(output, index=False)
    else:
        table.to_csv(output, index=False)


def nothing_found(found: Collection) -> str:
    """Why there is no table, in words."""
    lines = [f"  {place}: {reason}" for place, reason in found.skipped]
    return "\n".join(["no evaluated run: evaluate.py writes what is collected here", *lines])

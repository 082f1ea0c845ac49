"""Any set of run directories as one tidy table, and a list of what could not be read.

A run of the table is an evaluation, evaluate.json, with the training its weights come from. Its
rows are its operating points. Speeds come from what benchmark.py and reproduce.py measured.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from lfvit.errors import DataError
from lfvit.report.tables import operating_points
from lfvit.sweeps import WELL

RESULTS = (
    "config.yaml",
    "run.json",
    "metrics.json",
    "evaluate.json",
    "benchmark.json",
    "job.json",
)
NOT_A_SETTING = ("seed", "name", "run_dir", "ckpt_path", "logger", "callbacks", "num_workers")
"""What two runs of one group may differ in: seed, names, places, and what only reports."""
NAMES = {"lf_vit": "LF-ViT", "cf_vit": "CF-ViT", "vit": "ViT"} | {
    "evit": "EViT",
    "tome": "ToMe",
    "dynamic_vit": "DynamicViT",
    "frequency": "frequency",
}
INTERPOLATED = ", interpolated between measured shares of exits"
MEANS = ("top1", "top5", "gmacs", "exit_fraction", "consistency", "gap", "images_per_second")


class Skipped(NamedTuple):
    """A place without a result that can be shown, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One evaluation and the training behind it: the contents of their files.

    place: its folder, from the folder all of them are in. settings: of the evaluation. The rest is
    that of the training, and empty where it is not known.
    """

    folder: Path
    place: str
    evaluation: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "done"
    given: str | None = None  # what `names` of `collect` calls it
    model: str = ""  # readable, the same for all seeds of a group
    name: str = ""  # the same, with the seed or the place where there are several
    key: str = "{}"  # of its group, as JSON

    @property
    def group(self) -> str:
        """Names what runs have in common that differ only in their seed."""
        key = json.dumps(json.loads(self.key), sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()[:8]

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def two_pass(self) -> bool:
        return self.evaluation["second"] is not None

    @property
    def data(self) -> str:
        """The images in words."""
        kind = str(self.evaluation.get("data", "")).removesuffix("DataModule").lower()
        root = (self.settings.get("data") or {}).get("root")
        root = root or (self.config.get("data") or {}).get("root")
        return Path(root).name if root else f"{kind} (generated)" if kind == "needle" else kind


@dataclass(frozen=True)
class Collection:
    """What lies in some folders: runs, measured speeds, and what could not be read."""

    runs: list[Run]
    skipped: list[Skipped]
    speeds: list["Speeds"]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per run and operating point, see `make_table`."""
        return make_table(self)


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
            if evaluation is not None and (folder / evaluation).is_file():
                yield (folder / evaluation).resolve().parent

    def read(self, folders: list[Path]) -> Collection:
        runs = [run for folder in folders if (run := self._run(folder)) is not None]
        evaluated = {_training_of(run.folder, run.evaluation) for run in runs}
        for folder in folders:
            self._explain(folder, folder in evaluated)
        speeds = [speed for folder in folders for speed in self._speeds(folder)]
        return Collection(_named(runs), sorted(set(self.skipped)), speeds)

    def _place(self, folder: Path) -> str:
        return Path(os.path.relpath(folder, self.base)).as_posix()

    def _load(self, path: Path) -> dict[str, Any]:
        """A JSON or YAML mapping; empty where there is none or, with an entry, it is broken."""
        if not path.exists():
            return {}
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            if isinstance(content, dict):
                return content
            reason = "not a mapping"
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
        self.skipped.append(Skipped(self._place(path.parent), f"{path.name}: {reason}"))
        return {}

    def _run(self, folder: Path) -> Run | None:
        evaluation = self._load(folder / "evaluate.json")
        if not evaluation:
            return None
        fault = _fault(evaluation)
        if fault:
            self.skipped.append(Skipped(self._place(folder), f"evaluate.json: {fault}"))
            return None
        run = Run(folder, self._place(folder), evaluation, self._load(folder / "config.yaml"))
        run = replace(run, given=None if self.names is None else self.names(folder))
        training = _training_of(folder, evaluation)
        if training is not None:
            run = replace(
                run,
                metrics=self._load(training / "metrics.json"),
                environment=self._load(training / "environment.json"),
                config=self._load(training / "config.yaml"),
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
        training = self._clean(run.config)
        training.pop("threshold", None)
        return {  # in the order in which differences are named
            **given,
            "model": model,
            "training": training,
            **weights,
            "evaluation": self._clean(run.settings) | {"threshold": threshold},
        }

    def _clean(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config without what is no setting; weights of a known run are that run's settings."""

        def clean(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {k: clean(v) for k, v in value.items() if k not in NOT_A_SETTING}
            return value

        found = clean(config)
        start = config.get("init_from")
        if start:
            origin = self._load(Path(str(start)).parent.parent / "config.yaml")
            found["init_from"] = self._clean(origin) if origin else str(start)
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
        elif "verify_macs" in config and not (folder / "evaluate.json").exists():
            self.skipped.append(Skipped(place, "not finished: holds no evaluate.json"))

    def _speeds(self, folder: Path) -> Iterator["Speeds"]:
        benchmark = self._load(folder / "benchmark.json")
        if benchmark and _timed(benchmark.get("rows")):
            yield Speeds(benchmark, self._load(folder / "config.yaml"))
        elif benchmark:
            reason = "benchmark.json: not as benchmark.py writes it"
            self.skipped.append(Skipped(self._place(folder), reason))


def _fault(evaluation: Mapping[str, Any]) -> str | None:
    """What an evaluate.json lacks to be shown."""
    try:
        for point in operating_points(evaluation):
            float(0 if point["top1"] is None else point["top1"] + point["gmacs"])
        str(evaluation["method"]["name"] + evaluation["checkpoint"])
    except (KeyError, TypeError, AttributeError) as error:
        return f"not as evaluate.py writes it ({type(error).__name__}: {error})"
    return None


def _timed(rows: Any) -> bool:
    """Whether these are rows of a benchmark."""
    keys = ("images_per_second", "settings", "batch_size", "gmacs")
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(row.get(key) for key in keys) for row in rows
    )


def _training_of(folder: Path, evaluation: Mapping[str, Any]) -> Path | None:
    """The directory of the training whose weights were evaluated, if it is still there.

    Around a copied evaluation, the copy of its training comes before the original.
    """
    named = Path(str(evaluation.get("checkpoint"))).parent.parent
    around = list(folder.parents[:3])
    for candidate in (*(above for above in around if above.name == named.name), named, *around):
        if (candidate / "metrics.json").exists():
            return candidate.resolve()
    return None


# --- names --------------------------------------------------------------------------------------


def _named(runs: list[Run]) -> list[Run]:
    """The runs with names that tell them apart: method, data, settings, seed, and at last place.

    Where a name was given, it stands for method and data.
    """
    several = len({run.data for run in runs}) > 1
    models = [
        run.given or (f"{kind_of(run)}, {run.data}" if several else kind_of(run)) for run in runs
    ]
    groups = [run.group for run in runs]
    for more in (_differences, _places):
        models = _longer(models, groups, more, runs)
    runs = [replace(run, model=model) for run, model in zip(runs, models, strict=True)]
    names, places = models, [run.place for run in runs]
    for more in (_seeds, _places):
        names = _longer(names, places, more, runs)
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _longer(
    names: list[str],
    identities: list[str],
    more: Callable[[list[Run]], list[str]],
    runs: list[Run],
) -> list[str]:
    """The names, with ``more`` added to each that stands for several identities."""
    names = list(names)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        if len({identities[i] for i in same}) == 1:
            continue
        texts = more([runs[i] for i in same])
        if len(set(texts)) > 1:
            for i, text in zip(same, texts, strict=True):
                names[i] = f"{name}, {text}" if text else name
    return names


def _seeds(runs: list[Run]) -> list[str]:
    return [f"seed {run.seed}" for run in runs]


def _places(runs: list[Run]) -> list[str]:
    return [run.place for run in runs]


def kind_of(run: Run) -> str:
    """Method and reducer as people write them."""
    method = run.evaluation["method"]["name"]
    reducer = (run.evaluation.get("reducer") or {}).get("name", "none")
    name = NAMES.get(method, method)
    if reducer == "none":
        return name
    return f"{name} + {NAMES.get(reducer, reducer)}"


def _differences(runs: list[Run]) -> list[str]:
    """What each run of several was set to where they differ, in words."""
    flat = [flatten(json.loads(run.key)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    told: dict[str, list[str]] = {}
    for key in keys:
        values = [settings.get(key) for settings in flat]
        if len({json.dumps(value) for value in values}) > 1:
            texts = [_short(value) for value in values]
            if texts not in told.values():  # a setting and what follows from it is one difference
                told[key] = texts
    few = dict(list(told.items())[:3])
    last = [key.rpartition(".")[2] for key in few]
    names = [
        name if last.count(name) == 1 else ".".join(key.split(".")[-2:])
        for name, key in zip(last, few, strict=True)
    ]
    return [
        ", ".join(f"{name}={texts[i]}" for name, texts in zip(names, few.values(), strict=True))
        for i in range(len(runs))
    ]


def _short(value: Any) -> str:
    if value is None:
        return "default"
    text = Path(value).name if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:23] + "…"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots; empty groups are left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# --- speed --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speeds:
    """What one benchmark.json says about images per second, with the settings beside it."""

    content: dict[str, Any]
    config: dict[str, Any]

    def of(self, run: Run, point: Mapping[str, Any]) -> tuple[float, str] | None:
        """Images per second of an operating point, and how that is known; None if it is not.

        Time per image is linear in the share of images that exit, so that between two measured
        shares it is interpolated. Beyond them only the point's own threshold is known where it was
        timed, on images of which another share may exit.
        """
        share = point.get("exit_fraction") if run.two_pass else 0.0
        rows, setting = self._rows(run)
        if share is None or not rows:
            return None
        times = {float(row["exit_fraction"] or 0): 1 / row["images_per_second"] for row in rows}
        shares = sorted(times)
        if not shares[0] - 1e-9 <= share <= shares[-1] + 1e-9:
            threshold = point.get("threshold")
            asked = None if threshold is None else f"measured at eta={threshold:g}"
            row = next((row for row in rows if asked and row.get("exits") == asked), None)
            if row is None:
                return None
            early = f"on images of which {100 * row['exit_fraction']:.1f} % exit"
            return row["images_per_second"], f"{setting}, {self.machine}, {early}"
        speed = 1 / float(np.interp(share, shares, [times[s] for s in shares]))
        exact = min(abs(share - s) for s in shares) < 1e-6
        return speed, f"{setting}, {self.machine}{'' if exact else INTERPOLATED}"

    @property
    def machine(self) -> str:
        return str((self.content.get("environment") or {}).get("machine", "machine not recorded"))

    def _rows(self, run: Run) -> tuple[list[dict[str, Any]], str]:
        """The rows about the model of this run, all in one setting: the largest batch."""

        def setting(row: Mapping[str, Any]) -> tuple[Any, ...]:
            return row["batch_size"], row.get("precision", "fp32"), bool(row.get("compiled"))

        rows = [
            row
            for row in self.content["rows"]
            if row.get("task", "inference") == "inference" and self._same_model(run, row)
        ]
        best = max((setting(row) for row in rows), default=None)
        if best is None:
            return [], ""
        batch, precision, compiled = best
        text = f"batch {batch}, {precision}{', compiled' if compiled else ''}"
        return [row for row in rows if setting(row) == best], text

    def _same_model(self, run: Run, row: Mapping[str, Any]) -> bool:
        """Whether a row is about this run's weights, or about a random model of the same cost.

        The same method, reducer and MACs, and backbone and image size where no checkpoint is
        stated; the number of classes may change the MACs of a random model by a percent. Trained
        weights need not state their reducer: MACs tell it from another one.
        """
        stated = dict(json.loads(row["settings"]))
        checkpoint, reducer = stated.pop("ckpt_path", None), stated.pop("reducer", None)
        if reducer is None:
            reducer = {"name": "none"} if checkpoint is None else {}
        reducer = reducer if isinstance(reducer, Mapping) else {"name": reducer}
        own_reducer = run.evaluation.get("reducer") or {"name": "none"}
        own = run.evaluation["method"]
        same = self._same_size(run) if checkpoint is None else _same_file(checkpoint, run)
        if not same:
            return False
        if any(own.get(key) != value for key, value in stated.items() if value is not None):
            return False
        if any(own_reducer.get(k) != v for k, v in reducer.items() if v is not None):
            return False
        ends = [
            run.evaluation[name]["gmacs"] for name in ("first", "second") if run.evaluation[name]
        ]
        share = float(row["exit_fraction"] or 0)
        cost = ends[0] + (1 - share) * (ends[-1] - ends[0])
        return abs(row["gmacs"] / cost - 1) < 0.01

    def _same_size(self, run: Run) -> bool:
        """Whether random models had this run's backbone and image size: their own, or a file's."""
        checkpoint = self.config.get("ckpt_path")
        if checkpoint is not None:
            return _same_file(checkpoint, run)
        keys = ("backbone", "image_size")
        return all(self.config.get(k, run.evaluation.get(k)) == run.evaluation.get(k) for k in keys)


def _same_file(checkpoint: str, run: Run) -> bool:
    return Path(checkpoint).resolve() == Path(run.evaluation["checkpoint"]).resolve()


# --- tables -------------------------------------------------------------------------------------


def make_table(found: Collection) -> pd.DataFrame:
    """One row per run and operating point: tidy, ready for CSV or parquet.

    Columns: model (readable), group (equal where only the seed differs), seed, place, data; run,
    kind, rule, value, outcome, threshold (see `operating_points`); top1 and top5 in percent, gmacs,
    exit_fraction, consistency, gap, images; images_per_second with throughput_from;
    pareto, whether no other row on the same data is better in top-1 at no more GMACs; seeds and
    the mean and standard deviation over them, such as top1_mean and top1_std; then what is known of
    training and evaluation, and the training's settings as config.*.
    """
    rows: list[dict[str, Any]] = []
    for run in found.runs:
        for point in operating_points(run.evaluation):
            speed = next((s for speeds in found.speeds if (s := speeds.of(run, point))), None)
            rows.append(
                {
                    "model": run.model,
                    "group": run.group,
                    "seed": run.seed,
                    "place": run.place,
                    "data": run.data,
                    **{key: point.get(key) for key in ("run", "kind", "rule", "value", "outcome")},
                    **{key: point.get(key) for key in ("threshold", *MEANS[:-1], "images")},
                    "images_per_second": speed and speed[0],
                    "throughput_from": speed and speed[1],
                    **_about(run),
                }
            )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    frame[list(MEANS)] = frame[list(MEANS)].astype("float64")
    frame.insert(frame.columns.get_loc("images"), "pareto", pareto(frame))
    means = over_seeds(frame)
    keys = ["group", "run"]
    columns = [*keys, "seeds", *(f"{name}_{part}" for name in MEANS for part in ("mean", "std"))]
    frame = frame.merge(means[columns], on=keys, how="left", validate="many_to_one")
    return _one_type_per_column(frame)


def _about(run: Run) -> dict[str, Any]:
    evaluated = run.evaluation.get("environment") or {}
    known = {
        "method": run.evaluation["method"]["name"],
        "reducer": (run.evaluation.get("reducer") or {}).get("name", "none"),
        "image_size": run.evaluation.get("image_size"),
        "checkpoint": Path(run.evaluation["checkpoint"]).name,
        "precision": run.evaluation.get("precision"),
        "status": run.status,
        **{
            key: run.metrics.get(key)
            for key in ("epochs", "parameters", "train_images", "train_seconds", "machine")
        },
        "command": run.environment.get("command"),
        "commit": run.environment.get("commit"),
        "evaluation_command": evaluated.get("command"),
        "evaluation_commit": evaluated.get("commit"),
        "evaluation_machine": evaluated.get("machine"),
    }
    return known | {f"config.{key}": value for key, value in flatten(run.config).items()}


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: one row per group and operating point, in the order they came.

    Several runs of one seed count as one. The spread is the sample standard deviation, empty for a
    single seed. ``pareto`` is that of the means.
    """
    keys = ["group", "run"]
    first = frame.drop_duplicates(keys)[["model", *keys, "data", "kind", "rule", "value", "images"]]
    numbers = ["threshold", *MEANS]
    values = frame.assign(threshold=frame["threshold"].astype("float64"))
    per_seed = values.groupby([*keys, "seed"], sort=False, dropna=False)[numbers].mean()
    grouped = per_seed.groupby(level=keys, sort=False)
    table = first.set_index(keys)
    table["seeds"] = grouped.size()
    for name in numbers:
        table[f"{name}_mean"], table[f"{name}_std"] = grouped[name].mean(), grouped[name].std()
    table = table.reset_index()
    named = table.assign(top1=table["top1_mean"], gmacs=table["gmacs_mean"])
    return table.assign(pareto=pareto(named))


def pareto(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Whether no row on the same data has more top-1 at no more GMACs, or as much at fewer."""
    best = pd.Series(False, index=frame.index)
    for _, rows in frame.dropna(subset=["top1", "gmacs"]).groupby("data", dropna=False):
        ordered = rows.sort_values(["gmacs", "top1"], ascending=[True, False])
        least_cost = ordered.groupby("top1")["gmacs"].transform("min")
        leads = (ordered["top1"] >= ordered["top1"].cummax()) & (ordered["gmacs"] == least_cost)
        best[ordered.index[leads]] = True
    return best


def _one_type_per_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold lists or values of several kinds as JSON text, which parquet can store."""
    for name in [name for name in frame if frame[name].dtype.kind == "O"]:
        kinds = {type(value) for value in frame[name].dropna()}
        if kinds == {int}:
            frame[name] = frame[name].astype("Int64")
        elif len(kinds) > 1 or kinds & {list, dict}:
            frame[name] = frame[name].map(json.dumps, na_action="ignore")
    return frame


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

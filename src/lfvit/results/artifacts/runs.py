"""The runs that artifacts need: composed, checked, trained and evaluated once, and continued."""

import fnmatch
import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from omegaconf import DictConfig
from rich.console import Console

from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import check, train
from lfvit.errors import ConfigError, LFViTError, TrainingError
from lfvit.measure.schemas import read_evaluation
from lfvit.models.checkpoints import weights_digest
from lfvit.results.old.legacy import legacy
from lfvit.runs.overrides import quote_path
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.runs.record import CheckpointRecord, make_record, model_overrides, override
from lfvit.runs.setup import build_model
from lfvit.utils.signals import call
from lfvit.utils.validation import check_names, plain


class Run(NamedTuple):
    """One training with its evaluation, or an evaluation of another run's weights.

    name: of the entry in ``runs``. seed: of the training. train: the composed training config; None
    evaluates the weights it starts from. overrides: from which it was composed. evaluate: overrides
    of the evaluation. start: key of the run whose weights it starts from. folder: where it lives.
    """

    name: str
    seed: int
    train: DictConfig | None
    overrides: list[str]
    evaluate: list[str]
    start: str | None
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def result(self) -> Path:
        return self.folder / "evaluation" / "evaluate.json"

    @property
    def settings(self) -> str:
        """All that decides what comes out."""
        return json.dumps([plain(self.train), self.evaluate, self.start], indent=2)

    @property
    def origin(self) -> str | None:
        """In words, where the weights started from those of another run."""
        if self.start is None:
            return None
        if self.train is None:
            return (
                f"the weights of {self.start} with {' '.join(self.evaluate)}, not trained further"
            )
        epochs = self.train.trainer.max_epochs
        return f"{epochs} epoch{'s' if epochs > 1 else ''} from the weights of {self.start}"

    @property
    def state(self) -> str:
        """In one word, as far as the files tell."""
        if self.result.exists():
            return "done"
        return "begun" if self.checkpoint.exists() else "to do"


def key_of(name: str, seed: int) -> str:
    return f"{name}/seed{seed}"


def left_out(cfg: DictConfig) -> dict[str, str]:
    """Runs that the scale leaves out, and why: of its names and patterns, such as ``*tiny*``.

    Raises:
        ConfigError: one of them is no run.
    """
    found: dict[str, str] = {}
    for pattern, why in cfg.scale.leave_out.items():
        names = fnmatch.filter(map(str, cfg.runs), pattern)
        if not names:
            check_names("scale.leave_out", [pattern], cfg.runs)
        found |= dict.fromkeys(names, str(why))
    return found


def compose_runs(cfg: DictConfig, names: Iterable[str]) -> dict[str, Run]:
    """The named runs and those they start from, for every seed, each after the one it starts from.

    Two names for the same settings share one `Run`, under the name that ``runs`` lists first. Every
    setting of every run is checked, while nothing has been trained.

    Returns:
        Key -> run; keys of the same settings have the same run.

    Raises:
        ConfigError: naming the run and the setting.
    """
    wanted = _with_starts(cfg, names)
    found: dict[str, Run] = {}
    same: dict[str, Run] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    for name in wanted:
        for seed in cfg.scale.seeds:
            try:
                run = _compose(cfg, name, seed, found, composed)
            except LFViTError as error:
                raise type(error)(f"run {name}: {error}") from error
            identity = _identity(run)
            if identity not in same:
                _check_evaluation(run, found)
            found[key_of(name, seed)] = same.setdefault(identity, run)
    return found


def _with_starts(cfg: DictConfig, names: Iterable[str]) -> list[str]:
    """Names with those they start from, in the order of ``runs``, starts first."""
    wanted = set(names)
    order: list[str] = []

    def add(name: str, above: tuple[str, ...] = ()) -> None:
        if name in above:
            raise ConfigError(f"runs: {', '.join(above)} start from each other")
        start = _entry(cfg, name).get("start")
        if start is not None:
            if start not in cfg.runs or "recipe" not in cfg.runs[start]:
                raise ConfigError(f"runs.{name}.start={start!r} trains no weights")
            add(start, (*above, name))
        if name not in order:
            order.append(name)

    for name in cfg.runs:
        if name in wanted:
            add(str(name))
    return order


def _entry(cfg: DictConfig, name: str) -> dict[str, Any]:
    """Of ``runs``; without a start of its own, with the one that the scale has for its recipe."""
    entry: dict[str, Any] = plain(cfg.runs[name])
    check_names(f"runs.{name}", entry, ["recipe", "train", "evaluate", "start"])
    if len(entry.get("recipe", ())) == 1:  # of other sizes, the weights would not fit
        entry.setdefault("start", cfg.scale.starts.get(entry["recipe"][0]))
    return entry


def _compose(
    cfg: DictConfig,
    name: str,
    seed: int,
    found: Mapping[str, Run],
    composed: dict[tuple[str, ...], DictConfig],
) -> Run:
    """One run, checked; `composed` keeps configs, of which several runs may have the same."""
    entry = _entry(cfg, name)
    folder = Path(cfg.output_dir) / "runs" / name / f"seed{seed}"
    start = None if entry.get("start") is None else key_of(entry["start"], seed)
    how = [*cfg.scale.evaluate, *entry.get("evaluate", [])]
    if "recipe" not in entry:
        if start is None:
            raise ConfigError(f"runs.{name} needs a recipe, or start and evaluate")
        return Run(name, seed, None, [], how, start, folder)
    for part in entry["recipe"]:
        if part not in cfg.scale.parts:
            valid = ", ".join(cfg.scale.parts)
            raise ConfigError(f"runs.{name}.recipe={part!r} is unknown; valid: {valid}")
    overrides = [
        *cfg.scale.overrides,
        *[override for part in entry["recipe"] for override in cfg.scale.parts[part]],
        *entry.get("train", []),
        *([] if cfg.data_root is None else [quote_path(f"data.root={cfg.data_root}")]),
        *cfg.overrides,
        f"seed={seed}",
    ]
    if tuple(overrides) not in composed:
        composed[tuple(overrides)] = compose("train", overrides)
    run = composed[tuple(overrides)].copy()
    run.name, run.run_dir = name, str(folder)
    if start is not None:
        run.init_from = str(found[start].checkpoint)
    check(run, weights_exist=start is None)
    return Run(name, seed, run, overrides, how, start, folder)


def _identity(run: Run) -> str:
    """The same for two runs that would do the same."""
    training = plain(run.train)
    if training is not None:
        del training["name"], training["run_dir"], training["callbacks"], training["logger"]
    return json.dumps([training, run.evaluate, run.start, run.seed])


def _check_evaluation(run: Run, found: Mapping[str, Run]) -> None:
    """Build what is going to be evaluated, while nothing has been trained."""
    trained: Any = found[run.start or ""].train if run.train is None else run.train
    evaluation = compose("evaluate", run.evaluate)
    record = override(make_record(trained, []), model_overrides(evaluation))
    build_model(CheckpointRecord(**record), num_classes=2)


def distinct(runs: Mapping[str, Run]) -> list[Run]:
    """Every run once, each after the one it starts from."""
    return list({run.folder: run for run in runs.values()}.values())


def check_folders(runs: Iterable[Run], fresh: bool) -> None:
    """Refuse folders that hold something else, before anything is trained.

    Raises:
        ConfigError: naming the folder, and how to go on.
    """
    for run in runs:
        asked = run.folder / "settings.json"
        own = asked.exists() and (fresh or asked.read_text() == run.settings)
        if own or not run.folder.exists():
            continue
        raise ConfigError(
            f"{run.folder} holds something else than this run; pass another output_dir, or "
            "fresh=true to repeat the chosen runs in their places"
        )


def finish(run: Run, runs: Mapping[str, Run], fresh: bool, console: Console) -> dict[str, Any]:
    """Train and evaluate a run, as far as that is not done already with these settings.

    What started from weights that are not there any more is done again; with `fresh`, all is.

    Returns:
        The contents of its evaluate.json.
    """
    folder, asked, origin = run.folder, run.folder / "settings.json", run.folder / "start.sha256"
    start = None if run.start is None else runs[run.start]
    weights = None if start is None else weights_digest(start.checkpoint)
    if fresh and asked.exists():
        shutil.rmtree(folder)
    if origin.exists() and origin.read_text() != weights:
        console.print(f"{run.start} was trained again since: {run.name} is repeated")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(run.settings)
    if weights is not None:
        origin.write_text(weights)
    if run.result.exists():
        console.print(f"already done: {run.result}")
        return legacy(read_evaluation(run.result))
    if run.train is not None and not (folder / "metrics.json").exists():
        started = time.monotonic()
        _train(run)
        console.print(f"trained in {time.monotonic() - started:.0f} s")
    evaluation = compose("evaluate", run.evaluate)
    evaluation.ckpt_path = str(
        (run if start is None or run.train is not None else start).checkpoint
    )
    evaluation.run_dir = str(run.result.parent)
    return legacy(evaluate(evaluation))


def _train(run: Run) -> None:
    """In this process; on several devices in another one, since their processes start it anew."""
    cfg: Any = run.train
    resume = str(run.checkpoint) if run.checkpoint.exists() else None
    if cfg.trainer.get("devices", 1) in (1, "1", [0]):
        cfg = cfg.copy()
        if resume is not None:
            cfg.ckpt_path, cfg.init_from = resume, None
        train(cfg)
        return
    paths = {
        "run_dir": str(run.folder),
        "hydra.run.dir": str(run.folder),
        "ckpt_path" if resume else "init_from": resume or cfg.init_from or "null",
    }
    command = [sys.executable, str(PROJECT_ROOT / "train.py"), *run.overrides]
    command += [f"name={run.name}", *(quote_path(f"{key}={path}") for key, path in paths.items())]
    if call(command):
        raise TrainingError(f"{' '.join(command)} failed; its messages are above")

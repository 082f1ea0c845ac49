"""`search(cfg)`: settings that no other beats in both accuracy and cost, found with Optuna."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from rich.console import Console
from rich.markdown import Markdown

from lfvit.commands.jobs import run_job
from lfvit.commands.train import check
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs
from lfvit.measure.schemas import read_evaluation
from lfvit.models.two_pass import TwoPassViT
from lfvit.runs.overrides import compose_config
from lfvit.runs.provenance import environment
from lfvit.runs.setup import build_model
from lfvit.runs.sweeps import refuse_launched
from lfvit.utils.atomic_io import read_json, write_json
from lfvit.utils.error_messages import error_message
from lfvit.utils.markdown import code, escape
from lfvit.utils.seeding import derive
from lfvit.utils.validation import check_names, check_range, check_whole, plain

log = logging.getLogger(__name__)

RANGE = ("low", "high", "step", "log")
SETTINGS = ("experiment", "overrides", "space", "max_gmacs", "seed")


def search(cfg: DictConfig) -> list[dict[str, Any]]:
    """Propose, train and evaluate until there are ``cfg.trials`` trials.

    Maximises top-1 and minimises GMACs, both at the trial's own threshold. A trial that fails is
    listed, and the search goes on. Writes search.json, frontier.md and Optuna's study.log into
    ``cfg.output_dir``, each trial into trials/NUMBER.

    Returns:
        The trials of search.json: number, settings, top1 (%), gmacs, exit_fraction, directory,
        error, and whether they are on the frontier.

    Raises:
        LFViTError: anything the user can mend, before the first trial.
    """
    states = _optuna().trial.TrialState
    space = _checked_space(cfg)
    out = Path(cfg.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    try:
        alone = FileLock(out / "search.lock").acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{out}: another process is searching there; pass output_dir") from error
    with alone:
        _check_same(cfg, out)
        study = _open(out)
        while (done := len(_tried(study))) < cfg.trials:
            # by trial: a continued search does not propose once more what it began with
            seed = derive(cfg.seed, len(study.trials))
            study.sampler = _optuna().samplers.TPESampler(seed=seed)
            trial = study.ask()
            settings = {key: _suggest(trial, key, values) for key, values in space.items()}
            log.info("trial %d of %d: %s", done + 1, cfg.trials, _words(settings))
            try:
                point = _try(cfg, settings, out, trial)
            except Exception as error:  # whatever it is, the other trials are not lost
                message = error_message(error)
                log.error("%s", message or "", exc_info=None if message else error)
                trial.set_user_attr("error", message or f"{type(error).__name__}: {error}")
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, [point["top1"], point["gmacs"]])
            _write(study, cfg, out)
        rows = _write(study, cfg, out)
    Console().print(Markdown((out / "frontier.md").read_text()))
    print(f"written to {out}: frontier.md, search.json")
    for row in rows:
        if row["error"] is not None:
            print(f"error: trial {row['number']}: {row['error']}", file=sys.stderr)
    return rows


def _checked_space(cfg: DictConfig) -> dict[str, Any]:
    """The settings to choose by their full name, with their values; all settings are checked."""
    check_whole("trials", cfg.trials, 1)
    check_whole("seed", cfg.seed, 0)
    if cfg.max_gmacs is not None:
        check_range("max_gmacs", cfg.max_gmacs, 0, above=True)
    space = _flat(plain(cfg.space))
    if not space:
        raise ConfigError("space is empty; name a setting, such as +space.method.region_size=[4,5]")
    for key, values in space.items():
        _check_values(key, values)
    first = {key: _first(values) for key, values in space.items()}
    compose_config("train", _overrides(cfg, first))
    refuse_launched("a search")
    return space


def _open(out: Path) -> Any:
    """The study in this directory, as far as it got."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal
    study = optuna.create_study(
        study_name="search",
        storage=journal.JournalStorage(journal.JournalFileBackend(str(out / "study.log"))),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    running = optuna.trial.TrialState.RUNNING
    for trial in study.get_trials(states=(running,)):  # interrupted: its training is continued
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _try(cfg: DictConfig, settings: Mapping[str, Any], out: Path, trial: Any) -> dict[str, Any]:
    """Train and evaluate one proposal; its accuracy and cost."""
    run = compose_config("train", _overrides(cfg, settings))
    trials = out / "trials"
    run.run_dir = str(trials / f"{trial.number:04d}")
    check(run)
    least = _least_gmacs(run)
    if cfg.max_gmacs is not None and least > cfg.max_gmacs:
        raise ConfigError(
            f"costs {least:.4g} GMACs or more, whatever the threshold, and max_gmacs="
            f"{cfg.max_gmacs:g}; not trained"
        )
    done = run_job(run, trials, overrides=_overrides(cfg, settings))
    if done.evaluation is None:
        raise ConfigError("left no last.ckpt to evaluate; use callbacks=default")
    point = read_evaluation(done.evaluation).configured.model_dump()
    if cfg.max_gmacs is not None:
        trial.set_constraint("max_gmacs", point["gmacs"] - cfg.max_gmacs)
    trial.set_user_attr("exit_fraction", point.get("exit_fraction"))
    trial.set_user_attr("directory", str(done.directory))
    return point


def _least_gmacs(run: DictConfig) -> float:
    """What every image costs at least; without the classes, which are not read yet."""
    model = build_model(run, num_classes=1)
    return count_macs(model, "first" if isinstance(model, TwoPassViT) else None) / 1e9


def _overrides(cfg: DictConfig, settings: Mapping[str, Any]) -> list[str]:
    chosen = [f"{key}={value}" for key, value in settings.items()]
    return [f"experiment={cfg.experiment}", *cfg.overrides, *chosen]


def _check_same(cfg: DictConfig, out: Path) -> None:
    """Trials of other settings are not to be compared."""
    asked = {key: plain(cfg[key]) for key in SETTINGS}
    before = read_json(out / "settings.json") or asked
    for key, value in asked.items():
        if before.get(key) != value:
            raise ConfigError(
                f"{out} holds a search with {key}={before.get(key)}, not {value}; pass another "
                "output_dir"
            )
    write_json(out / "settings.json", asked)


def _tried(study: Any) -> list[Any]:
    """Trials that came to an end, well or not."""
    return [t for t in study.trials if t.state.name == "COMPLETE" or "error" in t.user_attrs]


def _write(study: Any, cfg: DictConfig, out: Path) -> list[dict[str, Any]]:
    tried = _tried(study)
    # what exceeds the budget beats nothing within it, since it costs more
    best = {t.number for t in study.best_trials} if any(t.values for t in tried) else set()
    rows = [
        {
            "number": trial.number,
            "settings": trial.params,
            "top1": trial.values[0] if trial.values else None,
            "gmacs": trial.values[1] if trial.values else None,
            "exit_fraction": trial.user_attrs.get("exit_fraction"),
            "directory": trial.user_attrs.get("directory"),
            "error": trial.user_attrs.get("error"),
            "frontier": trial.number in best
            and (cfg.max_gmacs is None or trial.values[1] <= cfg.max_gmacs),
        }
        for trial in tried
    ]
    about = environment()
    write_json(out / "search.json", {"trials": rows, "environment": about})
    budget = "" if cfg.max_gmacs is None else f", within {cfg.max_gmacs:g} GMACs"
    lines = ["| trial | settings | top-1 (%) | GMACs | early (%) |", "|--:|---|--:|--:|--:|"]
    front = sorted((row for row in rows if row["frontier"]), key=lambda row: row["gmacs"])
    for row in front:
        exits = row["exit_fraction"]
        lines.append(
            f"| {row['number']} | {escape(_words(row['settings']))} | {row['top1']:.2f} "
            f"| {row['gmacs']:.4f} | {'' if exits is None else f'{100 * exits:.1f}'} |"
        )
    failed = sum(row["error"] is not None for row in rows)
    parts = [
        f"# The frontier of {len(rows)} trials{budget}",
        "\n".join(lines),
        f"{failed} of {len(rows)} trials failed. Chosen on the validation images they are "
        "reported on, which favours luck: report a choice on images that no trial has seen, and on "
        "other seeds.",
        f"{code(about['command'])}, commit {about['commit']}, {about['machine']}.",
    ]
    (out / "frontier.md").write_text("\n\n".join(parts) + "\n")
    return rows


def _words(settings: Mapping[str, Any]) -> str:
    def short(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return " ".join(f"{key}={short(value)}" for key, value in settings.items())


def _flat(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full name; a range is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and not value.keys() & {"low", "high"}:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _check_values(key: str, values: Any) -> None:
    if isinstance(values, dict):
        check_names(f"space.{key}", values, RANGE)
        for end in ("low", "high"):
            check_range(f"space.{key}.{end}", values.get(end), float("-inf"))
        if values["low"] >= values["high"]:
            raise ConfigError(
                f"space.{key}: low={values['low']} has to be below high={values['high']}"
            )
        if values.get("log") and (values["low"] <= 0 or values.get("step") is not None):
            raise ConfigError(f"space.{key}: log=true needs low above 0, and no step")
    elif not isinstance(values, list) or not values:
        raise ConfigError(
            f"space.{key}={values!r} must be a list of values, or low and high of a range"
        )


def _first(values: Any) -> Any:
    return values["low"] if isinstance(values, dict) else values[0]


def _suggest(trial: Any, key: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    low, high, step = values["low"], values["high"], values.get("step")
    logarithmic = bool(values.get("log"))
    if all(isinstance(number, int) for number in (low, high, step or 1)):
        return trial.suggest_int(key, low, high, step=step or 1, log=logarithmic)
    return trial.suggest_float(key, low, high, step=step, log=logarithmic)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("searching needs Optuna: pip install -e '.[sweep]'") from error
    return optuna

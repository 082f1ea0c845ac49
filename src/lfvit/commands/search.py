"""`search(cfg)`: settings that no other beats in both accuracy and cost, found with Optuna."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from pydantic import Field, model_validator

from lfvit.commands.jobs import run_job
from lfvit.commands.train import check
from lfvit.errors import ConfigError
from lfvit.measure.costs import pass_macs
from lfvit.measure.schemas import read_evaluation
from lfvit.runs.configs import check_names, compose_config
from lfvit.runs.models import build_model
from lfvit.runs.provenance import environment
from lfvit.runs.sweeps import refuse_launched
from lfvit.utils.atomic_io import read_json, write_atomic, write_json
from lfvit.utils.error_messages import error_message
from lfvit.utils.markdown import code, print_table, to_markdown
from lfvit.utils.seeding import derive
from lfvit.utils.validation import OneOrList, Settings, plain, validate

log = logging.getLogger(__name__)

TITLES = {
    "number": "trial",
    "words": "settings",
    "top1": "top-1 (%)",
    "gmacs": "GMACs",
    "exit_fraction": "early",
}
FORMATS = {"top1": ".2f", "gmacs": ".4f", "exit_fraction": ".1%"}


class Range(Settings):
    """Of whole numbers if both ends are, in steps, or on a logarithmic scale."""

    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False

    @model_validator(mode="after")
    def _possible(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} has to be below high={self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log=true needs low above 0, and no step")
        return self


class SearchSettings(Settings):
    """What search.yaml explains. space: full name of a setting -> its values or their range."""

    experiment: str
    overrides: Annotated[list[str], OneOrList]
    trials: Annotated[int, Field(ge=1)]
    max_gmacs: Annotated[float, Field(gt=0)] | None
    seed: Annotated[int, Field(ge=0)]
    space: Annotated[dict[str, Any], Field(min_length=1)]


def search(cfg: DictConfig) -> list[dict[str, Any]]:
    """Propose, train and evaluate until there are ``cfg.trials`` trials.

    Maximizes top-1 and minimizes GMACs, both at the trial's threshold. A trial that fails is
    listed, and the search goes on. Writes search.json, frontier.md and Optuna's study.log into
    ``cfg.output_dir``, each trial into trials/NUMBER.

    Returns:
        The trials of search.json: number, settings, top1 (%), gmacs, exit_fraction, directory,
        error, and whether they are on the frontier.

    Raises:
        LFViTError: a setting is at fault, before the first trial.
    """
    refuse_launched("a search")
    import optuna

    settings, out = _checked(cfg), Path(cfg.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / "search.lock").acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"{out}: another process is searching there; pass output_dir") from error
    with lock:
        # trials of other settings are not to be compared
        asked = settings.model_dump(exclude={"trials"})
        before = read_json(out / "settings.json") or asked
        for key, value in asked.items():
            if before.get(key) != value:
                raise ConfigError(
                    f"{out} holds a search with {key}={before.get(key)}, not {value}; pass another "
                    "output_dir"
                )
        write_json(out / "settings.json", asked)
        study = _open(out)
        while (done := len(_ended(study))) < settings.trials:
            # by trial: a continued search does not propose once more what it began with
            seed = derive(settings.seed, len(study.trials))
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = study.ask()
            chosen = {key: _suggest(trial, key, values) for key, values in settings.space.items()}
            log.info("trial %d of %d: %s", done + 1, settings.trials, _words(chosen))
            try:
                point = _try(settings, chosen, out, trial)
            except Exception as error:  # whatever it is, the other trials are not lost
                message = error_message(error)
                log.error("%s", message or "", exc_info=None if message else error)
                trial.set_user_attr("error", message or f"{type(error).__name__}: {error}")
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, [point["top1"], point["gmacs"]])
            _write(study, settings, out)
        rows = _write(study, settings, out)
    frontier = [row for row in rows if row["frontier"]]
    print_table([{**row, "words": _words(row["settings"])} for row in frontier], FORMATS, TITLES)
    print(f"written to {out}: frontier.md, search.json")
    for row in rows:
        if row["error"] is not None:
            print(f"error: trial {row['number']}: {row['error']}", file=sys.stderr)
    return rows


def _checked(cfg: DictConfig) -> SearchSettings:
    """The settings, and the config of the first values composed from them."""
    values = {key: plain(cfg[key]) for key in SearchSettings.model_fields}
    values["experiment"] = cfg.experiment.name
    space = values["space"] = _flat(values["space"])
    for key, value in space.items():
        if isinstance(value, dict):
            space[key] = validate(Range, value, f"space.{key}")
        elif not isinstance(value, list) or not value:
            raise ConfigError(
                f"space.{key}={value!r} must be a list of values, or low and high of a range"
            )
    settings = validate(SearchSettings, values)
    first = {k: v.low if isinstance(v, Range) else v[0] for k, v in settings.space.items()}
    check_names(compose_config("train", _overrides(settings, first)))
    return settings


def _flat(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names; a range is a value, null leaves one out."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        if isinstance(value, dict) and not value.keys() & {"low", "high"}:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _open(out: Path) -> Any:
    """The study in this directory, as far as it got."""
    import optuna
    from optuna.storages import journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
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


def _try(
    settings: SearchSettings, chosen: Mapping[str, Any], out: Path, trial: Any
) -> dict[str, Any]:
    """Train and evaluate one proposal; its operating point."""
    overrides, budget = _overrides(settings, chosen), settings.max_gmacs
    cfg = compose_config("train", overrides)
    cfg.run_dir = str(out / "trials" / f"{trial.number:04d}")
    check(cfg)
    least = pass_macs(build_model(cfg, num_classes=1))[0] / 1e9  # the classes are not read yet
    if budget is not None and least > budget:
        raise ConfigError(
            f"costs {least:.4g} GMACs or more, whatever the threshold, and max_gmacs={budget:g}; "
            "not trained"
        )
    job = run_job(cfg, out / "trials", overrides=overrides)
    if job.evaluation is None:
        raise ConfigError("left no last.ckpt to evaluate; use callbacks=default")
    point = read_evaluation(job.evaluation).configured.model_dump()
    if budget is not None:
        trial.set_constraint("max_gmacs", point["gmacs"] - budget)
    trial.set_user_attr("exit_fraction", point["exit_fraction"])
    trial.set_user_attr("directory", str(job.directory))
    return point


def _overrides(settings: SearchSettings, chosen: Mapping[str, Any]) -> list[str]:
    return [
        f"experiment={settings.experiment}",
        *settings.overrides,
        *(f"{key}={value}" for key, value in chosen.items()),
    ]


def _ended(study: Any) -> list[Any]:
    """Trials that were completed or failed."""
    return [t for t in study.trials if t.state.name == "COMPLETE" or "error" in t.user_attrs]


def _write(study: Any, settings: SearchSettings, out: Path) -> list[dict[str, Any]]:
    """Write search.json and frontier.md; the trials."""
    trials, budget = _ended(study), settings.max_gmacs
    # what exceeds the budget beats nothing within it, since it costs more
    best = {t.number for t in study.best_trials} if any(t.values for t in trials) else set()
    rows = []
    for trial in trials:
        top1, gmacs = trial.values or (None, None)
        row: dict[str, Any] = {"number": trial.number, "settings": trial.params}
        row |= {"top1": top1, "gmacs": gmacs}
        row |= {k: trial.user_attrs.get(k) for k in ("exit_fraction", "directory", "error")}
        row["frontier"] = trial.number in best and (budget is None or row["gmacs"] <= budget)
        rows.append(row)
    origin = environment()
    write_json(out / "search.json", {"trials": rows, "environment": origin})
    front = sorted((row for row in rows if row["frontier"]), key=lambda row: row["gmacs"])
    within = "" if budget is None else f", within {budget:g} GMACs"
    failed = sum(row["error"] is not None for row in rows)
    parts = [
        f"# The frontier of {len(rows)} trials{within}",
        to_markdown([{**r, "words": _words(r["settings"])} for r in front], FORMATS, TITLES),
        f"{failed} of {len(rows)} trials failed. Chosen on the validation images they are "
        "reported on, which favours luck: report a choice on images that no trial has seen, and on "
        "other seeds.",
        f"{code(origin['command'])}, commit {origin['commit']}, {origin['machine']}.",
    ]
    write_atomic(out / "frontier.md", "\n\n".join(parts) + "\n")
    return rows


def _words(chosen: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in chosen.items()
    )


def _suggest(trial: Any, key: str, values: "list[Any] | Range") -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    low, high, step = values.low, values.high, values.step
    if all(isinstance(number, int) for number in (low, high, step or 1)):
        return trial.suggest_int(key, low, high, step=step or 1, log=values.log)
    return trial.suggest_float(key, low, high, step=step, log=values.log)

"""`reproduce(cfg)`: the tables and figures of conf/artifact, from the runs they need."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import PositiveInt, field_validator

from lfvit.commands.reproduce_plan import print_plan
from lfvit.commands.reproduce_runs import (
    Outcome,
    Planned,
    folder_of,
    is_made,
    key_of,
    make_runs,
    number_of_jobs,
    plan_runs,
    prepare_folders,
)
from lfvit.errors import ConfigError, TrainingError
from lfvit.results.artifacts.files import write_index
from lfvit.results.artifacts.settings import NOT_TRAINED, Run, Scale, choose, read_artifacts
from lfvit.results.artifacts.tables import Results, Table
from lfvit.results.artifacts.write import make_artifact, write_artifact
from lfvit.results.collect import collect
from lfvit.utils.error_messages import only_warnings
from lfvit.utils.validation import OneOrList, Settings, plain, validate

log = logging.getLogger(__name__)


class ReproduceSettings(Settings):
    """What reproduce.yaml explains."""

    plan: bool
    fresh: bool
    jobs: PositiveInt | Literal["auto"]
    reuse: Annotated[list[str], OneOrList]
    overrides: Annotated[list[str], OneOrList]

    @field_validator("overrides")
    @classmethod
    def _of_every_training(cls, overrides: list[str]) -> list[str]:
        for key in (override.lstrip("+").partition("=")[0] for override in overrides):
            own = ("seed", "name", "run_dir", "method", "reducer", "method.name", "reducer.name")
            if key in own or key.startswith("hydra."):
                instead = "; pass scale.seeds=[0,1]" if key == "seed" else ""
                raise ValueError(f"every run has its own {key}{instead}")
        return overrides


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Make the runs that are not done yet, then write every chosen artifact into OUT/artifacts.

    Every setting of every run is checked before the first one starts. A run that fails does not
    lose the others: the artifacts that need it say so.

    Returns:
        Artifact name -> contents of its artifact.json. With ``plan``, nothing is run: ``runs`` and
        ``hours``.

    Raises:
        ConfigError: a setting that cannot work, before anything runs.
        TrainingError: at the end, if something failed.
    """
    scale = validate(Scale, plain(cfg.scale), "scale")
    settings = {key: plain(cfg[key]) for key in ReproduceSettings.model_fields}
    cfg = OmegaConf.merge(cfg, validate(ReproduceSettings, settings).model_dump())  # type: ignore[assignment]
    if cfg.data_root is not None and scale.generated:
        raise ConfigError(
            f"data_root={cfg.data_root}: scale={scale.name} generates its images; leave DATA out, "
            "or use SCALE=imagenette or SCALE=imagenet"
        )
    reuse = [Path(folder).expanduser() for folder in cfg.reuse]
    if missing := [folder for folder in reuse if not folder.is_dir()]:
        raise ConfigError(f"reuse={missing[0]}: no such folder; name a folder of run directories")
    runs = {str(name): validate(Run, plain(run), f"runs.{name}") for name, run in cfg.runs.items()}
    artifacts = read_artifacts(plain(cfg.artifact), runs)
    scale.check_names(runs, artifacts)
    chosen = choose(artifacts, scale.artifacts if cfg.artifacts is None else cfg.artifacts)
    if cfg.artifacts is None and scale.artifacts is not None:
        chosen.sort(key=lambda artifact: (scale.artifacts or []).index(artifact.name))
    if cfg.artifacts is not None:
        scale = scale.model_copy(update={"trainings": None})
    out = Path(cfg.output_dir)
    made = [n for n in runs if all(is_made(folder_of(out, n, seed)) for seed in scale.seeds)]
    left_out = scale.left_out(runs, made)
    planned = plan_runs(cfg, scale, runs, chosen, left_out)
    if cfg.plan:
        return print_plan(planned, scale)
    prepare_folders(planned.values(), cfg.fresh)
    outcomes = make_runs(planned, reuse, number_of_jobs(cfg.jobs))
    results = collect_results(scale, planned, outcomes, runs, left_out)
    failed = {f"run {name}": error for name, error in results.failed.items()}
    contents = {}
    for artifact in chosen:
        log.info("artifact %s: %s", artifact.name, artifact.title)
        folder = out / "artifacts" / artifact.name
        try:
            with only_warnings("lfvit.data", "lfvit.models"):  # each model and its images anew
                contents[artifact.name] = make_artifact(artifact, results, folder)
        except Exception as error:  # one artifact must not lose the others
            log.error("artifact %s", artifact.name, exc_info=error)
            failed[f"artifact {artifact.name}"] = f"{type(error).__name__}: {error}"
            empty = Table([], [], [f"Not made: {error}"])
            contents[artifact.name] = write_artifact(artifact, empty, folder, scale)
    if more := [a.name for a in chosen if NOT_TRAINED in map(left_out.get, a.runs)]:
        log.info(
            "more trainings complete %s: the same command with artifacts=NAME", ", ".join(more)
        )
    write_index(out, list(artifacts))
    # of all runs and artifacts there are, those of earlier calls included
    root = (out / "runs").resolve()
    names = {run.folder: name for name, seeds in results.runs.items() for run in seeds}
    collection = collect(
        [root, out / "artifacts"],
        lambda f: f.relative_to(root).parts[0] if f.is_relative_to(root) else names.get(f),
    )
    if collection.runs:
        from lfvit.results.page import write_page

        options: dict[str, Any] = {"artifacts": out / "artifacts", "intro": scale.label}
        first = [artifacts[name] for name in ("overview", "methods") if name in artifacts]
        options["featured"] = [run for artifact in first for run in artifact.runs]
        options["title"] = "Tables and figures of the papers"
        with only_warnings("lfvit.data", "lfvit.models"):
            write_page(collection, out / "report.html", **options)
    log.info("written to %s: README.md and report.html show everything", out)
    if failed:
        raise TrainingError(
            f"{len(failed)} failed, the rest is made; again with the same command goes on from "
            "here:\n" + "\n".join(f"  {name}: {message}" for name, message in failed.items())
        )
    return contents


def collect_results(
    scale: Scale,
    planned: Mapping[str, Planned],
    outcomes: Mapping[str, Outcome],
    runs: Mapping[str, Run],
    left_out: dict[str, str],
) -> Results:
    """The results by name of a run, which is there with all of its seeds or not at all."""
    results = Results(scale, {}, {}, left_out, {})
    folders = {
        key: job.evaluation.resolve().parent
        for key, job in outcomes.items()
        if not isinstance(job, str) and job.evaluation
    }
    made = collect(list(folders.values())).runs if folders else []
    by_folder = {run.folder: run for run in made}
    for name in runs:
        keys = [key for seed in scale.seeds if (key := key_of(name, seed)) in planned]
        errors = [error for key in keys if isinstance(error := outcomes[key], str)]
        if errors:
            results.failed[name] = errors[0]
        elif keys:
            results.runs[name] = [by_folder[folders[key]] for key in keys]
            if origin := planned[keys[0]].origin:
                results.starts[name] = origin
    return results

"""`reproduce(cfg)`: the tables and figures of conf/artifact, from the runs they need."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import PositiveInt

from lfvit.commands.reproduce_plan import print_plan
from lfvit.commands.reproduce_runs import (
    Done,
    Planned,
    key_of,
    make_runs,
    plan_runs,
    prepare_folders,
    read_runs,
)
from lfvit.errors import ConfigError, TrainingError
from lfvit.results.artifacts.settings import Artifact, Scale, choose, read_artifacts
from lfvit.results.artifacts.tables import Results, Table
from lfvit.results.artifacts.write import make_artifact, write_artifact, write_index
from lfvit.results.collect import Run, collect
from lfvit.results.page import write_page
from lfvit.utils.validation import Settings, plain, validate

log = logging.getLogger(__name__)

FEATURED = ("overview", "methods")
"""Artifacts whose models the report page shows first."""


class ReproduceSettings(Settings):
    """What reproduce.yaml explains."""

    plan: bool
    fresh: bool
    jobs: PositiveInt


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
    validate(ReproduceSettings, {key: cfg[key] for key in ReproduceSettings.model_fields})
    if cfg.data_root is not None and scale.generated:
        raise ConfigError(
            f"data_root={cfg.data_root}: scale={scale.name} generates its images; leave DATA out, "
            "or use SCALE=imagenette or SCALE=imagenet"
        )
    reuse = [Path(folder).expanduser() for folder in cfg.reuse]
    for folder in reuse:
        if not folder.is_dir():
            raise ConfigError(f"reuse={folder}: no such folder; name a folder of run directories")
    runs = read_runs(plain(cfg.runs))
    artifacts = read_artifacts(plain(cfg.artifact), runs)
    scale.check_names(runs, artifacts)
    chosen = choose(artifacts, scale.artifacts if cfg.artifacts is None else cfg.artifacts)
    if cfg.artifacts is None and scale.artifacts is not None:
        chosen.sort(key=lambda artifact: (scale.artifacts or []).index(artifact.name))
    planned = plan_runs(cfg, scale, runs, chosen)
    if cfg.plan:
        return print_plan(planned, scale)
    prepare_folders(planned.values(), cfg.fresh)
    out = Path(cfg.output_dir)
    made = make_runs(planned, reuse, cfg.jobs) if planned else {}
    results = _results(scale, planned, made, scale.left_out(runs))
    failed = {f"run {name}": error for name, error in results.failed.items()}
    contents = {}
    for artifact in chosen:
        log.info("artifact %s: %s", artifact.name, artifact.title)
        folder = out / "artifacts" / artifact.name
        try:
            contents[artifact.name] = make_artifact(artifact, results, folder)
        except Exception as error:  # one artifact must not lose the others
            log.error("artifact %s", artifact.name, exc_info=error)
            failed[f"artifact {artifact.name}"] = f"{type(error).__name__}: {error}"
            empty = Table([], [], [f"Not made: {error}"])
            contents[artifact.name] = write_artifact(artifact, empty, folder, scale)
    write_index(out, list(artifacts))
    _write_page(out, artifacts, results)
    log.info("written to %s: README.md and report.html show everything", out)
    if failed:
        raise TrainingError(
            f"{len(failed)} failed, the rest is made; again with the same command goes on from "
            "here:\n" + "\n".join(f"  {name}: {message}" for name, message in failed.items())
        )
    return contents


def _results(
    scale: Scale,
    planned: Mapping[str, Planned],
    made: Mapping[str, Done | str],
    left_out: Mapping[str, str],
) -> Results:
    """The results by name of a run, which is there with all of its seeds or not at all."""
    done = {key: result for key, result in made.items() if isinstance(result, Done)}
    folders = [result.evaluation for result in done.values()]
    found = {run.folder: run for run in collect(folders).runs}
    runs: dict[str, list[Run]] = {}
    failed, starts = {}, {}
    for name in dict.fromkeys(run.name for run in planned.values()):
        keys = [key_of(name, seed) for seed in scale.seeds]
        errors = [error for key in keys if isinstance(error := made[key], str)]
        if errors:
            failed[name] = errors[0]
            continue
        runs[name] = [found[done[key].evaluation.resolve()] for key in keys]
        if origin := planned[keys[0]].origin:
            starts[name] = origin
    return Results(scale, runs, failed, left_out, starts)


def _write_page(out: Path, artifacts: Mapping[str, Artifact], results: Results) -> None:
    """report.html about all runs and artifacts there are, those of earlier calls included."""
    root = (out / "runs").resolve()
    names = {run.folder: name for name, seeds in results.runs.items() for run in seeds}

    def label(folder: Path) -> str | None:
        above = folder.relative_to(root).parts[0] if folder.is_relative_to(root) else None
        return above or names.get(folder)

    # first the speeds of models that were timed in turns with all others of the first view
    first = [f for name in FEATURED if (f := out / "artifacts" / name).is_dir()]
    collection = collect([root, *first, out / "artifacts"], label)
    if collection.runs:
        write_page(
            collection,
            out / "report.html",
            artifacts=out / "artifacts",
            title="Tables and figures of the papers",
            intro=results.scale.label,
            featured=[
                run for name in FEATURED if name in artifacts for run in artifacts[name].runs
            ],
        )

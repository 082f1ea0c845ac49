"""`reproduce(cfg)`: the tables and figures of conf/artifact, from the runs they need."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lfvit.errors import ConfigError, TrainingError
from lfvit.measure.throughput import PRECISIONS
from lfvit.results.artifacts.content import Content, Findings, table
from lfvit.results.artifacts.execute import by_need, run_all
from lfvit.results.artifacts.figures import figure
from lfvit.results.artifacts.plan import plan
from lfvit.results.artifacts.reuse import take
from lfvit.results.artifacts.runs import Run, check_folders, compose_runs, key_of, left_out
from lfvit.results.artifacts.spec import Artifact, choose, read_artifacts
from lfvit.results.artifacts.write import write_artifact, write_index, written
from lfvit.results.collect import collect
from lfvit.results.page import write_page
from lfvit.runs.provenance import machine
from lfvit.runs.setup import make_data
from lfvit.utils.validation import check_choice, check_names, check_switch, check_whole, plain

FEATURED = ("overview", "methods")
"""Artifacts whose models the report page shows first."""


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Run what is not done yet, then write every chosen artifact into OUT/artifacts/NAME.

    Every setting of every run is checked before the first one starts. A run that fails does not
    lose the others: the artifacts that need it say so.

    Returns:
        Artifact name -> contents of its artifact.json. With ``plan``, nothing is run: ``runs`` and
        ``hours``.

    Raises:
        ConfigError: a setting that cannot work, before anything runs.
        TrainingError: at the end, if something failed.
    """
    scale = cfg.scale
    _check(cfg)
    artifacts = read_artifacts(cfg.artifact, map(str, cfg.runs))
    asked = scale.artifacts if cfg.artifacts is None else cfg.artifacts
    chosen = choose(artifacts, asked)
    if cfg.artifacts is None and scale.artifacts is not None:
        chosen.sort(key=lambda artifact: list(scale.artifacts).index(artifact.name))
    missing = left_out(cfg)
    needed = _needed(chosen, missing)
    runs = compose_runs(cfg, needed)
    order = by_need(runs, chosen)
    console = Console(markup=False)
    if cfg.plan:
        return _say_plan(plan(order, _served(runs, needed), scale), console)
    check_folders(order, cfg.fresh)
    _check_data(runs)
    out = Path(cfg.output_dir)
    for folder, origin in take(order, cfg.reuse).items():
        console.print(f"{folder} is taken from {origin}", soft_wrap=True)
    results = run_all(order, runs, cfg.fresh, cfg.jobs, console)
    found = _findings(scale, needed, missing, runs, results, out / "runs")
    wrong = {name: found.missing[name] for name in found.failed}
    console.rule("artifacts")
    told = {}
    for artifact in chosen:
        console.print(f"{artifact.name}: {artifact.title}", soft_wrap=True)
        try:
            told[artifact.name] = _make(artifact, found, out)
        except Exception as error:  # one artifact must not lose the others
            wrong[f"artifact {artifact.name}"] = f"{type(error).__name__}: {error}"
            console.print_exception()
            empty = Content([], [], [f"Not made: {error}"])
            told[artifact.name] = write_artifact(
                artifact, empty, _folder(out, artifact), plain(scale)
            )
    pages = _publish(out, artifacts, runs, scale)
    console.print(f"written to {out}: {' and '.join(pages)} show everything", soft_wrap=True)
    if wrong:
        raise TrainingError(
            f"{len(wrong)} failed, the rest is made; again with the same command goes on from "
            "here:\n" + "\n".join(f"  {name}: {message}" for name, message in wrong.items())
        )
    return told


def _publish(
    out: Path, artifacts: Mapping[str, Artifact], runs: Mapping[str, Run], scale: DictConfig
) -> list[str]:
    """Everything that is written about all artifacts together, those of earlier calls included."""
    write_index(written(out, list(artifacts)), out)

    def name_of(evaluation: Path) -> str:
        return evaluation.relative_to((out / "runs").resolve()).parts[0]

    # first the speeds of models that were timed in turns with all others of the first view
    first = [folder for name in FEATURED if (folder := out / "artifacts" / name).is_dir()]
    found = collect([out / "runs", *first, out / "artifacts"], name_of)
    if not found.runs:  # nothing but failed runs, which are told elsewhere
        return ["README.md"]
    shown = [name for title in FEATURED if title in artifacts for name in artifacts[title].runs]
    keys = [key_of(name, scale.seeds[0]) for name in shown]
    write_page(
        found,
        out / "report.html",
        artifacts=out / "artifacts",
        title="Tables and figures of the papers",
        intro=scale.label,
        # several names may share one run
        featured=[
            runs[key].folder.parent.name if key in runs else name
            for key, name in zip(keys, shown, strict=True)
        ],
    )
    return ["README.md", "report.html"]


def _check(cfg: DictConfig) -> None:
    scale = cfg.scale
    check_switch("plan", cfg.plan)
    check_switch("fresh", cfg.fresh)
    check_switch("scale.speed_compile", scale.speed_compile)
    check_choice("scale.speed_precision", scale.speed_precision, PRECISIONS)
    check_whole("jobs", cfg.jobs, 1)
    for name in scale.artifacts or []:
        check_choice("scale.artifacts", name, cfg.artifact)
    check_names("scale.starts", scale.starts, scale.parts)
    for part, name in scale.starts.items():
        check_choice(f"scale.starts.{part}", name, cfg.runs)
    left_out(cfg)
    check_names("scale.remarks", scale.remarks, cfg.runs)
    for name in ("probe_images", "speed_images", "speed_repeats"):
        check_whole(f"scale.{name}", scale[name], 1)
    if not len(scale.seeds):
        raise ConfigError("scale.seeds=[] runs nothing; pass at least one, such as [0]")
    for seed in scale.seeds:
        check_whole("scale.seeds", seed, 0)
    if cfg.data_root is not None and scale.generated:
        raise ConfigError(
            f"data_root={cfg.data_root}: scale={scale.name} generates its images; leave DATA out, "
            "or use SCALE=imagenette or SCALE=imagenet"
        )


def _needed(artifacts: Sequence[Artifact], missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Run -> names of the artifacts that show it."""
    needed: dict[str, list[str]] = {}
    for artifact in artifacts:
        for name in artifact.runs:
            if name not in missing:
                needed.setdefault(name, []).append(artifact.name)
    return needed


def _served(runs: Mapping[str, Run], needed: Mapping[str, list[str]]) -> dict[Path, list[str]]:
    """Folder of a run -> names of the artifacts that show it, or what starts from it."""
    served: dict[Path, list[str]] = {}
    for key, run in runs.items():
        shown = needed.get(key.rpartition("/")[0], [])
        for folder in [run.folder, *([] if run.start is None else [runs[run.start].folder])]:
            served[folder] = list(dict.fromkeys([*served.get(folder, []), *shown]))
    return served


def _check_data(runs: Mapping[str, Run]) -> None:
    """Find the images of every data set once, before hours are spent."""
    roots = {str(run.train.data.get("root")): run for run in runs.values() if run.train is not None}
    for run in roots.values():
        assert run.train is not None
        settings = plain(run.train.data)
        make_data(settings).setup()


def _findings(
    scale: DictConfig,
    needed: Iterable[str],
    missing: Mapping[str, str],
    runs: Mapping[str, Run],
    results: Mapping[Path, dict[str, Any] | str],
    folder: Path,
) -> Findings:
    """The results by name; a run is there with all of its seeds, or missing."""
    evaluations, failed = {}, {}
    for name in needed:
        each = [results[runs[key_of(name, seed)].folder] for seed in scale.seeds]
        errors = [result for result in each if isinstance(result, str)]
        if errors:
            failed[name] = errors[0]
        else:
            evaluations[name] = [result for result in each if not isinstance(result, str)]
    told = {name: runs[key_of(name, scale.seeds[0])].origin for name in evaluations}
    origins = {name: origin for name, origin in told.items() if origin is not None}
    why = {**missing, **failed}
    folders = {
        name: [runs[key_of(name, seed)].result.parent for seed in scale.seeds]
        for name in evaluations
    }
    return Findings(scale, evaluations, why, frozenset(failed), origins, folder, folders)


def _make(artifact: Artifact, found: Findings, out: Path) -> dict[str, Any]:
    """Write an artifact with the notes that every artifact has."""
    content = (table if artifact.kind == "table" else figure)(artifact, found)
    content.notes = [*artifact.notes, *content.notes, *_notes(artifact, found)]
    return write_artifact(artifact, content, _folder(out, artifact), plain(found.scale))


def _folder(out: Path, artifact: Artifact) -> Path:
    return out / "artifacts" / artifact.name


def _notes(artifact: Artifact, found: Findings) -> list[str]:
    """What the scale and missing runs mean for an artifact."""
    notes = []
    for name in artifact.runs:
        if name in found.missing:
            how = "Run failed" if name in found.failed else "Left out at this scale"
            notes.append(f"{how}: {name}, {found.missing[name]}.")
    notes += [f"{n}: {found.origins[n]}." for n in artifact.runs if n in found.origins]
    remarks = found.scale.remarks
    notes += list(dict.fromkeys(remarks[name] for name in artifact.runs if name in remarks))
    if found.scale.note and artifact.paper:
        notes.append(found.scale.note)
    if artifact.published and not found.scale.comparable:
        notes.append("Not comparable with the published figures, so no differences are given.")
    seeds = list(found.scale.seeds)
    if len(seeds) > 1:
        notes.append(
            f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))}), ± the sample standard "
            "deviation. Pictures of images, diagnoses and throughput: the first seed."
        )
    else:
        notes.append("One seed.")
    return notes


def _say_plan(rows: list[dict[str, Any]], console: Console) -> dict[str, Any]:
    """Print the plan."""
    shown = Table(title=f"What would run on {machine()}")
    for name in ("run", "artifacts", "state", "steps", "s/step", "hours"):
        shown.add_column(name, justify="right" if name in ("steps", "s/step", "hours") else "left")
    for row in rows:
        step = row["seconds_per_step"]
        shown.add_row(
            row["run"],
            ", ".join(row["artifacts"]),
            row["state"],
            f"{row['steps']:,}" if row["steps"] else "",
            "" if step is None else f"{step:.4f}",
            f"{row['hours']:.2f}" if row["steps"] else "",
        )
    hours = sum(row["hours"] for row in rows)
    shown.caption = (
        f"{hours:.2f} device-hours of training steps alone, measured now on noise with the "
        "configured batch (without a GPU, on 2 images and scaled); validation and reading of "
        "images come on top"
    )
    console.print(shown)
    return {"runs": rows, "hours": hours}

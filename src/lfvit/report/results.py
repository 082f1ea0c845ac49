"""A page of results, written from the files that runs left behind."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lfvit.errors import DataError
from lfvit.report.plots import plot_comparison
from lfvit.report.tables import comparison_rows, markdown_table, threshold_table


class Run(NamedTuple):
    """A finished training with its evaluation: the contents of their files."""

    name: str
    metrics: dict[str, Any]
    environment: dict[str, Any]
    evaluation: dict[str, Any]


def load_run(folder: Path) -> Run:
    """Read a run directory of train.py with an evaluate.json in it or below it.

    Raises:
        DataError: a file is missing; the message says which command writes it.
    """
    evaluations = sorted(folder.rglob("evaluate.json"))
    if len(evaluations) > 1:
        raise DataError(
            f"{folder}: holds several evaluations; keep one of "
            f"{', '.join(str(path.parent.relative_to(folder)) for path in evaluations)}"
        )
    for name, missing, command in (
        ("metrics.json", not (folder / "metrics.json").exists(), "train.py"),
        (
            "evaluate.json",
            not evaluations,
            f"python evaluate.py ckpt_path={folder}/checkpoints/last.ckpt "
            f"hydra.run.dir={folder}/evaluation",
        ),
    ):
        if missing:
            raise DataError(f"{folder}: holds no {name}, which is written by {command}")
    evaluation = json.loads(evaluations[0].read_text())
    return Run(
        evaluation["method"]["name"],
        json.loads((folder / "metrics.json").read_text()),
        json.loads((folder / "environment.json").read_text()),
        evaluation,
    )


def write_results(folders: Sequence[Path], title: str, intro: str, output: Path) -> None:
    """Write a Markdown page about some runs and a figure beside it; the last is the yardstick."""
    runs = [load_run(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):  # several of one method: by folder
        runs = [run._replace(name=folder.name) for run, folder in zip(runs, folders, strict=True)]
    if len({run.name for run in runs}) < len(runs):
        raise DataError("two run directories have the same name; rename one of them")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    found = {run.name: run.evaluation for run in runs}
    plot_comparison(found, [figure])
    parts = [
        f"# {title}",
        intro,
        f"Top-1 on {runs[0].evaluation['images']:,} validation images that training never saw. "
        f"GMACs are multiply-accumulates per image, counted in "
        f"{runs[0].evaluation['macs_counter']}.",
        markdown_table(comparison_rows(found)),
        f"![Accuracy against cost]({figure.name})",
        *[_about_calibration(run) for run in runs if run.evaluation["second"] is not None],
        *[
            f"## Every threshold of {run.name}\n\n{threshold_table(run.evaluation['curve'])}"
            for run in runs
            if run.evaluation["curve"]
        ],
        "## How the models were trained\n\n" + "\n".join(_provenance(run) for run in runs),
    ]
    output.write_text("\n\n".join(part for part in parts if part) + "\n")


def _about_calibration(run: Run) -> str:
    chosen = run.evaluation["calibrated"]
    return (
        f"The calibrated threshold of {run.name} is {chosen['rule']} "
        f"({chosen['calibration_images']:,} of the images, by class, seed {chosen['seed']}); its "
        f"row reports the other {chosen['reported_images']:,}, on which both passes reach "
        f"{chosen['second_top1']:.2f} %."
    )


def _provenance(run: Run) -> str:
    metrics, environment = run.metrics, run.environment
    packages = environment["packages"]
    return (
        f"- **{run.name}**: `{_without_paths(environment['command'])}`, commit "
        f"{environment['commit']}, {metrics['machine']}, {environment['threads']} thread(s), "
        f"torch {packages['torch']}, timm {packages['timm']}. {metrics['epochs']} epochs over "
        f"{metrics['train_images']:,} images, {metrics['parameters'] / 1e6:.2f} M parameters, "
        f"{metrics['train_seconds'] / 60:.0f} minutes. Evaluated: "
        f"{Path(run.evaluation['checkpoint']).name}, in {run.evaluation['precision']}, at commit "
        f"{run.evaluation['environment']['commit']}."
    )


def _without_paths(command: str) -> str:
    """The command with folders of this machine replaced by a placeholder."""
    words = []
    for word in shlex.split(command):
        key, equals, value = word.partition("=")
        words.append(f"{key}=DIR" if equals and os.path.isabs(value) else word)
    return shlex.join(words)

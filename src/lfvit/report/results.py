"""A Markdown page of results, written from the files that runs left behind."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from lfvit.errors import DataError
from lfvit.markdown import code, escaped
from lfvit.report.collect import Collection, nothing_found
from lfvit.report.evaluated import Run
from lfvit.report.frame import over_seeds
from lfvit.report.plots import plot_comparison
from lfvit.report.tables import (
    certificates_table,
    comparison_rows,
    markdown_table,
    rules_table,
    threshold_table,
)


def write_results(found: Collection, title: str, intro: str, output: Path) -> None:
    """Write a Markdown page about some runs and a figure beside it.

    Raises:
        DataError: not one run was evaluated.
    """
    if not found.runs:
        raise DataError(nothing_found(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    evaluations = {run.name: run.evaluation for run in found.runs}
    plot_comparison(evaluations, [figure])
    parts = [
        f"# {title}",
        intro,
        _about_images(found.runs),
        markdown_table(comparison_rows(evaluations)),
        f"![Accuracy against cost]({figure.name})",
        _seeds(found),
        *[part for run in found.runs if run.two_pass for part in _thresholds(run)],
        "## How the models were trained\n\n" + "\n".join(_provenance(run) for run in found.runs),
        _left_out(found),
    ]
    output.write_text("\n\n".join(part for part in parts if part) + "\n")


def _about_images(runs: list[Run]) -> str:
    counts = {(run.data, run.evaluation["images"]) for run in runs}
    images = ", ".join(
        f"{count:,} validation images of {escaped(data)}" for data, count in sorted(counts)
    )
    return (
        f"Top-1 on {images}, which training never saw. GMACs are multiply-accumulates per image, "
        f"counted in {runs[0].evaluation['macs_counter']}."
    )


def _seeds(found: Collection) -> str:
    """Means and spreads, where there is more than one seed."""
    means = over_seeds(found.table)
    found_some = means["top1_mean"].notna() & (means["kind"] != "certificate")
    several = means[(means["seeds"] > 1) & found_some]
    if several.empty:
        return ""
    lines = [
        "## Mean and standard deviation over seeds",
        "",
        "| model | run | seeds | top-1 (%) | GMACs |",
        "|---|---|--:|--:|--:|",
        *(
            f"| {escaped(row.model)} | {escaped(row.run)} | {row.seeds} "
            f"| {row.top1_mean:.2f} ± {row.top1_std:.2f} "
            f"| {row.gmacs_mean:.4f} ± {row.gmacs_std:.4f} |"
            for row in several.itertuples()
        ),
    ]
    return "\n".join(lines)


def _thresholds(run: Run) -> Iterator[str]:
    """Thresholds chosen on one part of the images, certified ones, and all of them."""
    calibration = run.evaluation.get("calibration")
    if calibration is not None:
        yield (
            f"## Thresholds chosen for {escaped(run.name)}\n\n"
            f"On {calibration['calibration_images']:,} of the images, by class, seed "
            f"{calibration['seed']}; the table reports the other "
            f"{calibration['reported_images']:,}."
        )
        yield rules_table(calibration)
        if calibration.get("risk"):
            yield (
                "The lowest threshold that keeps a risk within its bound on new images of the same "
                f"distribution, each with probability {1 - calibration['risk']['delta']:g}, and "
                "the risk met on the other part:"
            )
            yield certificates_table(calibration["risk"])
    if run.evaluation.get("curve"):
        yield f"## Every threshold of {escaped(run.name)}"
        yield threshold_table(run.evaluation["curve"])


def _provenance(run: Run) -> str:
    evaluated = (
        f"Evaluated: {escaped(Path(run.evaluation['checkpoint']).name)}, in "
        f"{escaped(run.evaluation['precision'])}, at commit "
        f"{escaped(run.evaluation['environment']['commit'])}."
    )
    metrics, environment = run.metrics, run.environment
    if not metrics or not environment:
        return f"- **{escaped(run.name)}**: trained elsewhere. {evaluated}"
    packages = environment["packages"]
    return (
        f"- **{escaped(run.name)}**: {code(without_paths(environment['command']))}, commit "
        f"{escaped(environment['commit'])}, {escaped(metrics['machine'])}, "
        f"{environment['threads']} thread(s), torch {packages['torch']}, timm {packages['timm']}. "
        f"{metrics['epochs']} epochs over {metrics['train_images']:,} images, "
        f"{metrics['parameters'] / 1e6:.2f} M parameters, "
        f"{metrics['train_seconds'] / 60:.0f} minutes. {evaluated}"
    )


def _left_out(found: Collection) -> str:
    if not found.skipped:
        return ""
    return "## Left out\n\n" + "\n".join(
        f"- {escaped(s.place)}: {escaped(s.reason)}" for s in found.skipped
    )


def without_paths(command: str) -> str:
    """The command with folders of this machine replaced by a placeholder."""
    try:
        split = shlex.split(command)
    except ValueError:  # from a file that no command of ours wrote
        return command
    words = []
    for word in split:
        key, equals, value = word.partition("=")
        if equals and os.path.isabs(value):
            words.append(f"{key}=DIR")
        else:
            words.append("DIR" if os.path.isabs(word) else word)
    return shlex.join(words)

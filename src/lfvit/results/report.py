"""A Markdown page of results: accuracy, cost, paired differences, thresholds and provenance."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from lfvit.errors import DataError
from lfvit.results.collect import Collection, Run
from lfvit.results.paired import (
    PairedRow,
    compare_models,
    equal_accuracy,
    verdict,
    ways_of,
)
from lfvit.results.plots import plot_accuracy_cost, plot_differences
from lfvit.results.provenance import without_paths
from lfvit.results.table import over_seeds, points_frame
from lfvit.runs.provenance import commit
from lfvit.utils.markdown import code, escape, to_markdown

Models = Mapping[str, Sequence[Run]]
Row = tuple[str, str, PairedRow]  # model, way, its comparison with the reference model
PAIRED = (
    "On the same images. Intervals: 95 % over images for these trained models (bootstrap; an image "
    "counts with its mean over seeds); ±: the sample standard deviation over seeds, on these "
    "images; p: McNemar's exact test of each seed. Early exits are compared on the half of the "
    "images that their thresholds were not chosen on."
)
POINT_TITLES = {
    "rule": "rule",
    "threshold": "η",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "reference_top1": "last pass (%)",
    "exit_fraction": "early exits",
    "consistency": "changed predictions",
    "gmacs": "GMACs",
    "images": "images",
}
FORMATS = {
    "threshold": ".4g",
    "top1": ".2f",
    "top5": ".2f",
    "reference_top1": ".2f",
    "exit_fraction": ".1%",
    "consistency": ".2%",
    "gmacs": ".4f",
    "images": ",",
}


def write_report(
    collection: Collection,
    output: Path,
    *,
    title: str = "Results",
    intro: str = "",
    command: str = "",
) -> None:
    """Write a Markdown page about some runs, with its plots beside it.

    Args:
        collection: see `lfvit.results.collect.collect`.
        output: the page.
        title, intro: at the top.
        command: that writes the page, stated at its end.

    Raises:
        DataError: there is no evaluated run.
    """
    collection.require_runs()
    output.parent.mkdir(parents=True, exist_ok=True)
    models = collection.by_model()
    plot = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    evaluations = {name: [run.evaluation for run in runs] for name, runs in models.items()}
    plot_accuracy_cost(evaluations, plot)
    counts = sorted({(run.data, run.evaluation.images) for run in collection.runs})
    images = ", ".join(f"{count:,} validation images of {escape(data)}" for data, count in counts)
    unseen = all(run.evaluation.unseen for run in collection.runs)
    parts = [
        f"# {title}",
        intro,
        f"Top-1 on {images}{', which training never saw' if unseen else ''}. GMACs are "
        "multiply-accumulates per image, counted by fvcore.",
        _accuracy(collection, models),
        f"![Accuracy against cost]({plot.name})",
        *_paired_sections(models, output),
        *[_thresholds(runs[0]) for runs in models.values()],
        "## How the models were trained\n\n"
        + "\n".join(f"- **{escape(name)}**: {provenance(runs)}" for name, runs in models.items()),
        "## Left out\n\n" * bool(collection.skipped)
        + "\n".join(f"- {escape(path)}: {escape(why)}" for path, why in collection.skipped),
        f"*Written by {code(command)}, commit {commit()}.*" if command else "",
    ]
    output.write_text("\n\n".join(part for part in parts if part) + "\n")


def reference_model(models: Models) -> str | None:
    """The model that others are compared with: the last one-pass model without a reducer."""
    plain = [name for name, runs in models.items() if runs[0].is_plain]
    return plain[-1] if plain else None


def _accuracy(collection: Collection, models: Models) -> str:
    """Passes and rules of every model: means over seeds with their standard deviation."""
    means = over_seeds(collection.table)
    shown = means["rule"].str.startswith("pass") | (means["chosen_on"] > 0)
    means = means[shown & means["top1_mean"].notna() & ~means["rule"].str.contains("<=")]
    name = reference_model(models)
    reference = models[list(models)[-1] if name is None else name]
    base = fmean(run.evaluation.passes[0].gmacs for run in reference)
    early = means["exit_fraction_mean"].where(means["chosen_on"] > 0)
    table = pd.DataFrame(
        {
            "model": means["model"],
            "rule": means["rule"],
            "seeds": means["seeds"],
            "top-1 (%)": _with_spread(means, "top1", 2),
            "GMACs": _with_spread(means, "gmacs", 4),
            "cost of one pass": means["gmacs_mean"] / base,
            "early exits": early,
        }
    )
    formats = {"top-1 (%)": "", "GMACs": "", "cost of one pass": ".0%", "early exits": ".1%"}
    several = (means["seeds"] > 1).any()
    note = "±: the sample standard deviation over seeds." if several else "One seed of each."
    if early.notna().any():
        note += (
            " The threshold of a rule was chosen on one part of the images and is reported on the "
            "other."
        )
    return f"{to_markdown(table, formats)}\n\n{note}"


def _with_spread(means: pd.DataFrame, name: str, digits: int) -> "pd.Series[str]":
    text = means[f"{name}_mean"].map(f"{{:.{digits}f}}".format)
    spread = means[f"{name}_std"].map(f" ± {{:.{digits}f}}".format)
    return text + spread.where(means["seeds"] > 1, "")


def _paired_sections(models: Models, output: Path) -> Iterator[str]:
    """Every model beside the reference model, seeds that both have."""
    readable: dict[str, list[Run]] = {}
    faults: list[str] = []
    for run in [run for runs in models.values() for run in runs]:
        try:
            assert len(run.predictions)
            readable.setdefault(run.model, []).append(run)
        except DataError as error:
            faults.append(f"- {escape(run.path)}: {escape(error)}")
    name = reference_model(readable)
    rows: list[Row] = []
    for model, runs in readable.items():
        if name is None:
            break
        seeds = {run.seed: run for run in readable[name]}
        common = [run for run in runs if run.seed in seeds]
        if model == name or not common or common[0].data != readable[name][0].data:
            continue
        theirs = [seeds[run.seed] for run in common]
        try:
            rows += [(model, way, compare_models(common, theirs, way)) for way in ways_of(common)]
        except DataError as error:
            faults.append(f"- {escape(model)} beside {escape(name)}: {escape(error)}")
    if faults:
        yield "## Not compared image by image\n\n" + "\n".join(faults)
    if rows:
        plot = output.with_name(f"{output.stem}_differences.png")
        plot_differences([(model, row) for model, _, row in rows], [plot])
        yield f"## Beside {escape(name)}, image by image\n\n{PAIRED}\n\n{_difference_table(rows)}"
        yield f"![Differences]({plot.name})"
    equal, budget = ({m: row for m, way, row in rows if way == w} for w in ("equal", "budget"))
    answers = [f"- **{escape(m)}**: {equal_accuracy(equal[m], budget[m])}" for m in equal]
    if answers:
        yield "## Equal accuracy at 37 % of the cost?\n\n" + "\n".join(answers)


def _difference_table(rows: Sequence[Row]) -> str:
    table = []
    for model, _, row in rows:
        found = row.comparison
        spread = "" if found.spread is None else f" ± {found.spread:.2f}"
        table.append(
            {
                "model": model,
                "run": row.way,
                "seeds": row.seeds,
                "images": found.images,
                "difference, points of top-1": f"{found.difference:+.2f}{spread}",
                "95 %": f"{found.low:+.2f} to {found.high:+.2f}",
                "p": ", ".join(f"{p:.2g}" for p in found.p_values),
                "cost (%)": row.cost,
                "": verdict(row),
            }
        )
    numbers = dict.fromkeys(("difference, points of top-1", "95 %", "p"), "")
    return to_markdown(table, {"images": ",", "cost (%)": ".0f", **numbers})


def _thresholds(run: Run) -> str:
    """The thresholds that were chosen for one seed."""
    points = points_frame(run.evaluation)
    chosen = points[points["chosen_on"] > 0]
    if chosen.empty:
        return ""
    risk = run.evaluation.settings.risk
    certified = (
        " Rules with ≤ hold on new images of the same distribution, each with probability "
        f"{1 - risk.delta:g}: consistency is the share of changed predictions, gap the top-1 lost."
        if risk is not None
        else ""
    )
    return (
        f"## Thresholds chosen for {escape(run.name)}\n\nOn {chosen['chosen_on'].iloc[0]:,} of the "
        f"images, by class; the table reports the others.{certified}\n\n"
        f"{points_table(chosen.drop(columns='top5'))}"
    )


def points_table(points: pd.DataFrame) -> str:
    """Operating points as Markdown; a rule without a threshold states the reason."""
    reasons = points["reason"].map(lambda reason: f": {reason}" if isinstance(reason, str) else "")
    table = points.assign(rule=points["rule"].str.replace("<=", " ≤ ") + reasons)
    titles = {name: title for name, title in POINT_TITLES.items() if name in table}
    return to_markdown(table, FORMATS, titles)


def provenance(runs: Sequence[Run]) -> str:
    """How the seeds of a model were trained and evaluated, in sentences."""
    run, evaluation = runs[0], runs[0].evaluation
    evaluated = f"Evaluated at commit {escape(evaluation.environment.get('commit'))}."
    metrics, environment = run.metrics, run.environment
    if not metrics or not environment:
        return f"Trained elsewhere. {evaluated}"
    commits = sorted({str(seed.environment.get("commit")) for seed in runs})
    minutes = [f"{seed.metrics['train_seconds'] / 60:.0f}" for seed in runs if seed.metrics]
    packages = environment["packages"]
    return (
        f"Seed {', '.join(str(seed.seed) for seed in runs)}: "
        f"{code(without_paths(environment['command']))}, commit {escape(', '.join(commits))}, "
        f"{escape(metrics['machine'])}, {environment['threads']} threads, torch "
        f"{escape(packages.get('torch'))}, timm {escape(packages.get('timm'))}. From "
        f"{escape(run.start)}: {metrics['epochs']} epochs over {metrics['train_images']:,} images, "
        f"{metrics['parameters'] / 1e6:.2f} M parameters, {' and '.join(minutes)} minutes. "
        f"{evaluated}"
    )

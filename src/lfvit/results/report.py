"""A Markdown page of results: accuracy, cost, paired differences, thresholds and provenance."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from lfvit.errors import DataError, LFViTError
from lfvit.measure.thresholds import NO_EXIT, correct_at, predictions_at
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
from lfvit.runs.setup import load_trained
from lfvit.utils.markdown import code, escape, to_markdown

Models = Mapping[str, Sequence[Run]]
Row = tuple[str, str, PairedRow]  # model, way, its comparison with the reference model
CURVE_STEP = 10  # every so many thresholds are in the table
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
    notes: Sequence[Path] = (),
    command: str = "",
) -> None:
    """Write a Markdown page about some runs, with its plots beside it.

    Args:
        collection: see `lfvit.results.collect.collect`.
        output: the page.
        title, intro: at the top.
        notes: pages of Markdown to include with their pictures, such as that of an artifact.
        command: that writes the page, stated at its end.

    Raises:
        DataError: there is no evaluated run.
    """
    collection.require_runs()
    output.parent.mkdir(parents=True, exist_ok=True)
    models = collection.by_model()
    plot = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    evaluations = {name: [run.evaluation for run in runs] for name, runs in models.items()}
    plot_accuracy_cost(evaluations, [plot])
    parts = [
        f"# {title}",
        intro,
        _about_images(collection.runs),
        _accuracy(collection, models),
        f"![Accuracy against cost]({plot.name})",
        *_paired_sections(models, output),
        *[include_page(page, output) for page in notes],
        *[part for runs in models.values() for part in _thresholds(runs[0])],
        "## How the models were trained\n\n" + "\n".join(map(_provenance, models.values())),
        "## Left out\n\n" * bool(collection.skipped)
        + "\n".join(f"- {escape(path)}: {escape(why)}" for path, why in collection.skipped),
        f"*Written by {code(command)}, commit {commit()}.*" if command else "",
    ]
    output.write_text("\n\n".join(part for part in parts if part) + "\n")


def include_page(page: Path, output: Path) -> str:
    """A page as a part of another: headings one deeper, pictures copied to images/ beside it."""

    def copied(link: re.Match[str]) -> str:
        picture = page.parent / link[2]
        if not picture.is_file():
            return link[0]
        copy = output.parent / "images" / f"{output.stem}_{picture.name}"
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, copy)
        return f"![{link[1]}](images/{copy.name})"

    text = re.sub(r"^(#+ )", r"#\1", page.read_text().strip(), flags=re.MULTILINE)
    return re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", copied, text)


def reference_model(models: Models) -> str | None:
    """The model that others are compared with: the last one-pass model without a reducer."""
    plain = [name for name, runs in models.items() if runs[0].is_plain]
    return plain[-1] if plain else None


def _about_images(runs: Sequence[Run]) -> str:
    counts = sorted({(run.data, run.evaluation.images) for run in runs})
    images = ", ".join(f"{count:,} validation images of {escape(data)}" for data, count in counts)
    return (
        f"Top-1 on {images}, which training never saw. GMACs are multiply-accumulates per image, "
        "counted by fvcore."
    )


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
    """Every model beside the reference, and what the passes after the first change."""
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
    for model, runs in readable.items():
        if runs[0].num_passes > 1:
            yield _changes(model, {m: readable[m] for m in (model, name) if m is not None})


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


def _changes(model: str, models: Models) -> str:
    """What the passes after the first change, over all images and by class."""
    shares = pd.DataFrame([change_shares(run.predictions) for run in models[model]])
    words = shares.mean().map("{:.2f}".format)
    if len(shares) > 1:
        words += shares.std().map(" ± {:.2f}".format)
    text = ", ".join(f"{value} % {kind}" for kind, value in words.items())
    try:
        classes = load_trained(models[model][0].checkpoint).record.classes
        table = classes_table(models, model, classes)
    except (LFViTError, LookupError, OSError) as error:
        table = f"No table by class: {escape(error)}."
    return (
        f"## What the last pass of {escape(model)} changes\n\nOf the first pass's predictions it "
        f"changes: {text}.\n\n{table}"
    )


def change_shares(predictions: pd.DataFrame) -> dict[str, float]:
    """Percent of the images whose prediction the last pass corrects, spoils, or changes else."""
    first, last = (predictions_at(predictions, threshold) for threshold in (0.0, NO_EXIT))
    right_first, right_last = first == predictions["target"], last == predictions["target"]
    return {
        "corrected": 100 * float((~right_first & right_last).mean()),
        "made wrong": 100 * float((right_first & ~right_last).mean()),
        "from one wrong class to another": 100
        * float((~right_first & ~right_last & (first != last)).mean()),
    }


def classes_table(models: Models, model: str, classes: Sequence[str]) -> str:
    """Top-1 of every class, means over seeds, and what the last pass of one model changes.

    Args:
        models: name -> runs of its seeds.
        model: the one with several passes.
        classes: names by class index.
    """
    shares = []
    for name, runs in models.items():
        for rows in [run.predictions for run in runs]:
            last = correct_at(rows, NO_EXIT)
            columns = {f"{name}, last pass (%)": last}
            if name == model:
                first = correct_at(rows, 0.0)
                columns = {f"{name}, pass 1 (%)": first, **columns}
                columns |= {"corrected (%)": ~first & last, "made wrong (%)": first & ~last}
            shares.append(100 * pd.DataFrame(columns).groupby(rows["target"]).mean())
    table = pd.concat(shares, axis=1).T.groupby(level=0, sort=False).mean().T
    formats = dict.fromkeys(table, ".1f") | {"images": ","}
    table.insert(0, "images", models[model][0].predictions["target"].value_counts())
    table.insert(0, "class", [classes[int(target)] for target in table.index])
    return to_markdown(table, formats)


def _thresholds(run: Run) -> Iterator[str]:
    """Of one seed: the thresholds that were chosen, and the whole curve."""
    points = points_frame(run.evaluation)
    chosen = points[points["chosen_on"] > 0]
    if len(chosen):
        risk = run.evaluation.settings.risk
        certified = (
            " Rules with ≤ hold on new images of the same distribution, each with probability "
            f"{1 - risk.delta:g}: consistency is the share of changed predictions, gap the top-1 "
            "lost."
            if risk is not None
            else ""
        )
        yield (
            f"## Thresholds chosen for {escape(run.name)}\n\nOn {chosen['chosen_on'].iloc[0]:,} of "
            f"the images, by class; the table reports the others.{certified}"
        )
        yield points_table(chosen.drop(columns="top5"))
    curve = [dict(point) for point in run.evaluation.curve]
    if curve:
        some = pd.DataFrame([*curve[:-1:CURVE_STEP], curve[-1]])
        titles = {name: title for name, title in POINT_TITLES.items() if name in some}
        heading = f"## Thresholds of {escape(run.name)}"
        yield f"{heading}\n\n{to_markdown(some, FORMATS | {'threshold': '.2f'}, titles)}"


def points_table(points: pd.DataFrame) -> str:
    """Operating points as Markdown; a rule without a threshold states the reason."""
    reasons = points["reason"].map(lambda reason: f": {reason}" if isinstance(reason, str) else "")
    table = points.assign(rule=points["rule"].str.replace("<=", " ≤ ") + reasons)
    titles = {name: title for name, title in POINT_TITLES.items() if name in table}
    return to_markdown(table, FORMATS, titles)


def _provenance(runs: Sequence[Run]) -> str:
    run, evaluation = runs[0], runs[0].evaluation
    evaluated = (
        f"Evaluated: {escape(Path(evaluation.checkpoint).name)}, in "
        f"{escape(evaluation.precision)}, at commit {escape(evaluation.environment.get('commit'))}."
    )
    metrics, environment = run.metrics, run.environment
    if not metrics or not environment:
        return f"- **{escape(run.model)}**: trained elsewhere. {evaluated}"
    commits = sorted({str(seed.environment.get("commit")) for seed in runs})
    minutes = [f"{seed.metrics['train_seconds'] / 60:.0f}" for seed in runs if seed.metrics]
    packages = environment.get("packages") or {}
    return (
        f"- **{escape(run.model)}**, seed{'s' * (len(runs) > 1)} "
        f"{', '.join(str(seed.seed) for seed in runs)}: "
        f"{code(without_paths(str(environment.get('command'))))}, commit "
        f"{escape(', '.join(commits))}, {escape(metrics['machine'])}, "
        f"{environment.get('threads')} threads, torch {escape(packages.get('torch'))}, timm "
        f"{escape(packages.get('timm'))}. From {escape(run.start)}: {metrics['epochs']} epochs "
        f"over {metrics['train_images']:,} images, {metrics['parameters'] / 1e6:.2f} M parameters, "
        f"{' and '.join(minutes)} minutes. {evaluated}"
    )

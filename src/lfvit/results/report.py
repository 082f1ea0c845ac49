"""A Markdown page of results: operating points, a plot, paired differences and provenance."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfvit.errors import DataError
from lfvit.results.collect import Collection, Run
from lfvit.results.paired import compare_models, ways_of
from lfvit.results.plots import plot_costs, plot_differences
from lfvit.results.provenance import provenance
from lfvit.results.table import mean_curves, mean_points, points_cells
from lfvit.runs.provenance import commit
from lfvit.utils.markdown import cells_to_markdown, code, escape, to_markdown

Models = Mapping[str, Sequence[Run]]
PAIRED = (
    "On the same images. Intervals: 95 % over images for these trained models (bootstrap; an image "
    "counts with its mean over seeds); ±: the sample standard deviation over seeds, on these "
    "images; p: McNemar's exact test of each seed. Early exits are compared on the half of the "
    "images that their thresholds were not chosen on."
)
POINTS = (
    "Means over seeds, ± the sample standard deviation. Thresholds of rules were chosen on some of "
    "the images (chosen on) and are reported on the others. Rules with ≤ bound a risk on new "
    "images of the same distribution: consistency, the share of changed predictions; gap, the "
    "top-1 lost."
)

COLUMNS = {
    "model": "model",
    "way": "run",
    "seeds": "seeds",
    "images": "images",
    "difference": "difference, points of top-1",
    "spread": "±",
    "interval": "95 %",
    "p": "p",
    "cost": "cost (%)",
    "verdict": "",
}
FORMATS = {"images": ",", "difference": "+.2f", "spread": ".2f", "cost": ".0f"}
FORMATS |= dict.fromkeys(("interval", "p"), "")


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
    curves, points = mean_curves(collection), mean_points(collection)
    passes = points[points["kind"] == "pass"].assign(threshold=None)
    drawn = dict(list(passes.groupby("model"))) | dict(list(curves.groupby("model")))
    plot = output.with_name(f"{output.stem}_accuracy_vs_gmacs.png")
    plot_costs({model: drawn[model] for model in models}, [plot])
    counts = sorted({(run.data, run.evaluation.images) for run in collection.runs})
    images = ", ".join(f"{count:,} validation images of {escape(data)}" for data, count in counts)
    parts = [
        f"# {title}",
        intro,
        f"Top-1 on {images}. GMACs are multiply-accumulates per image, counted by fvcore.",
        f"{cells_to_markdown(points_cells(points))}\n\n{POINTS}",
        f"![Accuracy against cost]({plot.name})",
        *_paired_sections(models, output),
        "## How the models were trained\n\n"
        + "\n".join(f"- **{escape(name)}**: {provenance(runs)}" for name, runs in models.items()),
        "## Left out\n\n" * bool(collection.skipped)
        + "\n".join(f"- {escape(path)}: {escape(why)}" for path, why in collection.skipped),
        f"*Written by {code(command)}, commit {commit()}.*" if command else "",
    ]
    output.write_text(
        "\n\n".join(part for part in parts if part) + "\n", "utf-8", "backslashreplace"
    )


def _paired_sections(models: Models, output: Path) -> Iterator[str]:
    """Every model beside the last one-pass model without a reducer, seeds that both have."""
    readable: dict[str, list[Run]] = {}
    faults: list[str] = []
    for run in [run for runs in models.values() for run in runs]:
        try:
            assert len(run.predictions)
            readable.setdefault(run.model, []).append(run)
        except DataError as error:
            faults.append(f"- {escape(run.path)}: {escape(error)}")
    name = next((name for name in reversed(readable) if readable[name][0].is_plain), None)
    rows: dict[str, dict[str, Any]] = {}
    for model, runs in readable.items() if name is not None else ():
        seeds = {run.seed: run for run in readable[name]}
        common = [run for run in runs if run.seed in seeds]
        if model == name or not common or common[0].data != readable[name][0].data:
            continue
        theirs = [seeds[run.seed] for run in common]
        try:
            for way in ways_of(common):
                row = compare_models(common, theirs, way)
                rows[f"{model}, {row['way']}"] = {"model": model, "seeds": len(common), **row}
        except DataError as error:
            faults.append(f"- {escape(model)} beside {escape(name)}: {escape(error)}")
    if faults:
        yield "## Not compared image by image\n\n" + "\n".join(faults)
    if rows:
        plot = output.with_name(f"{output.stem}_differences.png")
        plot_differences(rows, [plot])
        for row in rows.values():
            row["interval"] = f"{row['low']:+.2f} to {row['high']:+.2f}"
            row["p"] = ", ".join(f"{p:.2g}" for p in row["p_values"])
        table = to_markdown(list(rows.values()), FORMATS, COLUMNS)
        yield f"## Beside {escape(name)}, image by image\n\n{PAIRED}\n\n{table}"
        yield f"![Differences]({plot.name})"

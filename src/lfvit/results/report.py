"""A Markdown page of results: operating points, a plot, paired differences and provenance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from lfvit.errors import DataError
from lfvit.results.collect import Collection, Run
from lfvit.results.paired import compare_models, ways_of
from lfvit.results.plots import plot_costs, plot_differences
from lfvit.results.provenance import provenance
from lfvit.results.table import mean_curves, mean_points, points_cells
from lfvit.runs.provenance import commit
from lfvit.utils.markdown import cells_to_markdown, code, escape, format_cells

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
    """Write a Markdown page about some runs, page.md filled in, with its plots beside it.

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
    beside, rows, faults = compare_all([run for runs in models.values() for run in runs])
    differences = output.with_name(f"{output.stem}_differences.png")
    if rows:
        plot_differences({f"{row['model']}, {row['way']}": row for row in rows}, [differences])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"escaped": escape, "code": code, "table": cells_to_markdown}
    text = environment.get_template("page.md").render(
        title=title,
        intro=intro,
        command=command,
        commit=commit(),
        data=collection.data,
        points=points_cells(points),
        plot=plot.name,
        beside=beside,
        paired=format_cells(rows, FORMATS, COLUMNS),
        differences=differences.name,
        faults=faults,
        trained=[(name, provenance(runs)) for name, runs in models.items()],
        skipped=collection.skipped,
    )
    output.write_text(text, "utf-8", "backslashreplace")


def compare_all(runs: Sequence[Run]) -> tuple[str | None, list[dict[str, Any]], list[str]]:
    """Every model beside the one-pass model without a reducer, seeds that both have; of several
    the one of highest cost, as of the larger image.

    Returns:
        The name of that model; rows of `compare_models`, with model, seeds, and p and interval as
        text; and what cannot be compared, with the reason.
    """
    models: dict[str, list[Run]] = {}
    faults: list[str] = []
    for run in runs:
        try:
            assert len(run.predictions)
            models.setdefault(run.model, []).append(run)
        except DataError as error:
            faults.append(f"{run.path}: {error}")
    plain = [name for name in reversed(models) if models[name][0].is_plain]
    cost = {name: models[name][0].evaluation.passes[0].gmacs for name in plain}
    beside = max(plain, key=cost.__getitem__, default=None)
    rows: list[dict[str, Any]] = []
    if beside is None:
        return None, rows, faults
    for model, ours in models.items():
        seeds = {run.seed: run for run in models[beside]}
        common = [run for run in ours if run.seed in seeds]
        if model == beside or not common or common[0].data != models[beside][0].data:
            continue
        try:
            for way in ways_of(common):
                row = compare_models(common, [seeds[run.seed] for run in common], way)
                row["interval"] = f"{row['low']:+.2f} to {row['high']:+.2f}"
                row["p"] = ", ".join(f"{p:.2g}" for p in row["p_values"])
                rows.append({"model": model, "seeds": len(common), **row})
        except DataError as error:
            faults.append(f"{model} beside {beside}: {error}")
    return beside, rows, faults

"""The one table of results: a row per run and operating point."""

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lfvit.measure.schemas import Evaluation
from lfvit.results.speed import images_per_second
from lfvit.utils.markdown import Cells, format_cells

if TYPE_CHECKING:
    from lfvit.results.collect import Collection, Run

TITLES = {
    "rule": "rule",
    "threshold": "η",
    "top1": "top-1 (%)",
    "top1_std": "±",
    "top5": "top-5 (%)",
    "reference_top1": "last pass (%)",
    "exit_fraction": "early exits",
    "consistency": "changed predictions",
    "gmacs": "GMACs",
    "share": "of one pass (%)",
    "images": "images",
    "images_per_second": "images/s",
    "chosen_on": "chosen on",
    "path": "folder",
    "train_images": "training images",
    "train_seconds": "seconds",
    "evaluation_command": "evaluated with",
    "evaluation_commit": "evaluated at",
    "command": "trained with",
    "commit": "trained at",
}
"""Titles of columns, the same in Markdown and on the page; others are called by their names."""
FORMATS = {
    "threshold": ".4g",
    "top1": ".2f",
    "top1_std": ".2f",
    "top5": ".2f",
    "reference_top1": ".2f",
    "exit_fraction": ".1%",
    "consistency": ".2%",
    "gmacs": ".4f",
    "share": ".0f",
    "images_per_second": ",.0f",
    **dict.fromkeys(("images", "chosen_on", "train_images", "parameters"), ","),
    "train_seconds": ",.0f",
}
POINTS = (
    *("model", "rule", "seeds", "threshold", "top1", "top1_std", "gmacs", "share"),
    *("exit_fraction", "consistency", "images_per_second", "chosen_on", "images"),
)
MEASURES = ("top1", "top5", "gmacs", "exit_fraction", "consistency", "images_per_second")
TRAINING = ("epochs", "parameters", "train_images", "train_seconds", "machine")


def make_table(runs: Sequence["Run"], benchmarks: pd.DataFrame) -> pd.DataFrame:
    """One row per run and operating point: tidy, ready for CSV or parquet.

    Columns: model (readable), group (equal where only the seed differs), seed, path, data; those of
    `lfvit.measure.schemas.OperatingPoint`; top5, percent, of single passes; images_per_second with
    throughput_from; pareto, see `pareto`; facts of training and evaluation; the training's settings
    as config.*.
    """
    if not runs:
        return pd.DataFrame()
    table = pd.concat([_points(run, benchmarks) for run in runs], ignore_index=True)
    numbers = ["threshold", "reference_top1", *MEASURES]
    table[numbers] = table[numbers].astype("float64")
    table["pareto"] = pareto(table)
    facts = pd.DataFrame([_facts(run) for run in runs])
    settings = pd.json_normalize([run.config for run in runs]).add_prefix("config.")
    return table.merge(pd.concat([facts, settings], axis=1), on="path", validate="many_to_one")


def points_frame(evaluation: Evaluation) -> pd.DataFrame:
    """The operating points of an evaluation, with top5 of single passes, percent."""
    top5 = {f"pass {i + 1}": found.top5 for i, found in enumerate(evaluation.passes)}
    points = pd.DataFrame([dict(point) for point in evaluation.operating_points])
    points.insert(points.columns.get_loc("top1") + 1, "top5", points["rule"].map(top5))
    return points


def _points(run: "Run", benchmarks: pd.DataFrame) -> pd.DataFrame:
    known = {"model": run.model, "group": run.group, "seed": run.seed, "path": run.path}
    points = points_frame(run.evaluation)
    speeds = images_per_second(benchmarks, run, points["exit_fraction"])
    given = pd.DataFrame({**known, "data": run.data}, points.index)
    return pd.concat([given, points, speeds], axis=1)


def _facts(run: "Run") -> dict[str, Any]:
    evaluation, environment = run.evaluation, run.evaluation.environment
    return {
        "path": run.path,
        "method": evaluation.method["name"],
        "reducer": evaluation.reducer["name"],
        "image_size": evaluation.image_size,
        "checkpoint": Path(evaluation.checkpoint).name,
        "precision": evaluation.precision,
        "status": run.status,
        **{key: run.metrics.get(key) for key in TRAINING},
        "command": run.environment.get("command"),
        "commit": run.environment.get("commit"),
        **{f"evaluation_{key}": environment.get(key) for key in ("command", "commit", "machine")},
    }


def mean_points(collection: "Collection") -> pd.DataFrame:
    """Mean and spread over seeds: one row per group and operating point, in their order.

    Several runs of one seed count as one.

    Columns: some of `make_table`; seeds, their number; top1_std, the sample standard deviation,
    empty for a single seed; share, percent of the one-pass model's GMACs (see `one_pass_gmacs`);
    pareto, of the means; kind: "pass", "rule", or "guarantee" for a rule with a bound on the risk.
    """
    table, keys = collection.table, ["group", "rule"]
    numbers = table.groupby([*keys, "seed"], sort=False, dropna=False)[["threshold", *MEASURES]]
    seeds = numbers.mean().groupby(level=keys, sort=False)
    first = table.drop_duplicates(keys).set_index(keys)
    means = first[["model", "data", "images", "chosen_on", "reason"]].join(seeds.mean())
    means = means.assign(seeds=seeds.size(), top1_std=seeds["top1"].std()).reset_index()
    runs = {run.group: run for run in reversed(collection.runs)}
    one_pass = {group: one_pass_gmacs(collection.runs, run) for group, run in runs.items()}
    shares = 100 * means["gmacs"] / means["group"].map(one_pass).astype("float64")
    kind = means["rule"].str.startswith("pass").map({True: "pass", False: "rule"})
    kind = kind.mask(means["rule"].str.contains("<="), "guarantee")
    return means.assign(share=shares, kind=kind, pareto=pareto(means))


def mean_curves(collection: "Collection") -> pd.DataFrame:
    """Early exit at every threshold, means over the seeds of each model.

    Columns: model, threshold, top1 (percent), top1_std, exit_fraction, gmacs, share (percent of the
    one-pass model's GMACs, see `one_pass_gmacs`), images_per_second.
    """
    means = []
    for model, runs in collection.by_model().items():
        frames = []
        for run in runs:
            if run.evaluation.curve:
                curve = pd.DataFrame([dict(point) for point in run.evaluation.curve]).astype(float)
                speeds = images_per_second(collection.benchmarks, run, curve["exit_fraction"])
                frames.append(curve.assign(images_per_second=speeds["images_per_second"]))
        if frames:
            points = pd.concat(frames).groupby("threshold")
            mean = points.mean().assign(model=model, top1_std=points["top1"].std())
            mean["share"] = 100 * mean["gmacs"] / one_pass_gmacs(collection.runs, runs[0])
            means.append(mean[points.size() == len(frames)].reset_index())  # that all have
    columns = ["model", "threshold", "top1", "top1_std", "exit_fraction", "gmacs", "share"]
    columns.append("images_per_second")
    return pd.concat(means)[columns] if means else pd.DataFrame(columns=columns)


def one_pass_gmacs(runs: Sequence["Run"], run: "Run") -> float:
    """GMACs of the one-pass model without a reducer of this run's backbone, image size and data.

    NaN where there is none.
    """

    def size(other: "Run") -> tuple[Any, ...]:
        return other.evaluation.backbone, other.evaluation.image_size, other.data

    plain = [other for other in runs if other.is_plain and size(other) == size(run)]
    return plain[-1].evaluation.passes[0].gmacs if plain else nan


def points_cells(points: pd.DataFrame, columns: Sequence[str] | None = None) -> Cells:
    """Operating points as text; a rule without a threshold states the reason.

    Args:
        points: a row per operating point.
        columns: None for those of `POINTS` that have values.
    """
    reasons = points["reason"].map(lambda reason: f": {reason}" if isinstance(reason, str) else "")
    chosen_on = points["chosen_on"].where(points["chosen_on"] > 0).astype("Int64")
    rules = points["rule"].str.replace("<=", " ≤ ") + reasons
    table = points.assign(rule=rules, chosen_on=chosen_on)
    if columns is None:
        return table_cells(table, POINTS)
    return format_cells(table, FORMATS, {name: TITLES.get(name, name) for name in columns})


def table_cells(table: pd.DataFrame, columns: Sequence[str], **formats: str) -> Cells:
    """The columns that have values, as text; `formats` replace those of `FORMATS`."""
    titles = {name: TITLES.get(name, name) for name in columns if table[name].notna().any()}
    return format_cells(table, FORMATS | formats, titles)


def pareto(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether no row on the same data has more top-1 at no more GMACs, or as much at fewer."""
    best = pd.Series(False, index=table.index)
    for _, rows in table.dropna(subset=["top1", "gmacs"]).groupby("data", dropna=False):
        ordered = rows.sort_values(["gmacs", "top1"], ascending=[True, False])
        least_cost = ordered.groupby("top1")["gmacs"].transform("min")
        leads = (ordered["top1"] >= ordered["top1"].cummax()) & (ordered["gmacs"] == least_cost)
        best[ordered.index[leads]] = True
    return best


def write_table(collection: "Collection", output: Path, *, mean: bool = False) -> None:
    """Write the table as .csv or .parquet; with `mean`, one row per model and operating point.

    Raises:
        DataError: there is no run.
    """
    collection.require_runs()
    table = mean_points(collection) if mean else collection.table
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".parquet":  # one type per column: lists and mixtures as text
        table = table.convert_dtypes()
        for name in table.select_dtypes("object"):
            table[name] = table[name].map(json.dumps, na_action="ignore").astype("string")
        table.to_parquet(output, index=False)
    else:
        table.to_csv(output, index=False)

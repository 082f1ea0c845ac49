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
    throughput_from; pareto, see `pareto`; seeds and, over them, mean and standard deviation, such
    as top1_mean and top1_std; facts of training and evaluation; the training's settings as
    config.*.
    """
    if not runs:
        return pd.DataFrame()
    table = pd.concat([_points(run, benchmarks) for run in runs], ignore_index=True)
    numbers = ["threshold", "reference_top1", *MEASURES]
    table[numbers] = table[numbers].astype("float64")
    table["pareto"] = pareto(table)
    keys = ["group", "rule"]
    spread = [f"{name}_{part}" for name in MEASURES for part in ("mean", "std")]
    means = over_seeds(table)[[*keys, "seeds", *spread]]
    facts = pd.DataFrame([_facts(run) for run in runs])
    settings = pd.json_normalize([run.config for run in runs]).add_prefix("config.")
    table = table.merge(means, on=keys, how="left", validate="many_to_one")
    table = table.merge(pd.concat([facts, settings], axis=1), on="path", validate="many_to_one")
    return _one_type_per_column(table)


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


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: one row per group and operating point, in their order.

    Several runs of one seed count as one. The spread is the sample standard deviation, empty for a
    single seed. ``pareto`` is that of the means.
    """
    keys = ["group", "rule"]
    numbers = ["threshold", *MEASURES]
    per_seed = table.groupby([*keys, "seed"], sort=False, dropna=False)[numbers].mean()
    seeds = per_seed.groupby(level=keys, sort=False)
    first = table.drop_duplicates(keys).set_index(keys)
    means = first[["model", "data", "images", "chosen_on", "reason"]].assign(seeds=seeds.size())
    means = means.join(seeds.mean().add_suffix("_mean")).join(seeds.std().add_suffix("_std"))
    named = means.rename(columns={"top1_mean": "top1", "gmacs_mean": "gmacs"}).reset_index()
    return means.reset_index().assign(pareto=pareto(named))


def mean_points(collection: "Collection") -> pd.DataFrame:
    """Operating points, means over the seeds of each model.

    Columns: those of `over_seeds`, means without the suffix; share, percent of the one-pass model's
    GMACs (see `one_pass_gmacs`); and kind: "pass", "rule", or "guarantee" for a rule with a bound
    on the risk.
    """
    means = over_seeds(collection.table)
    means = means.rename(columns=lambda name: name.removesuffix("_mean"))
    first = {run.group: run for run in reversed(collection.runs)}
    one_pass = {group: one_pass_gmacs(collection.runs, run) for group, run in first.items()}
    shares = 100 * means["gmacs"] / means["group"].map(one_pass).astype("float64")
    kind = means["rule"].str.startswith("pass").map({True: "pass", False: "rule"})
    kind = kind.mask(means["rule"].str.contains("<="), "guarantee")
    return means.assign(share=shares, kind=kind)


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
                curve = pd.DataFrame([dict(point) for point in run.evaluation.curve])
                speeds = images_per_second(collection.benchmarks, run, curve["exit_fraction"])
                frames.append(curve.assign(images_per_second=speeds.pop("images_per_second")))
        if frames:
            mean = over_thresholds(frames).assign(model=model)
            mean["share"] = 100 * mean["gmacs"] / one_pass_gmacs(collection.runs, runs[0])
            means.append(mean)
    columns = ["model", "threshold", "top1", "top1_std", "exit_fraction", "gmacs", "share"]
    columns.append("images_per_second")
    return pd.concat(means)[columns] if means else pd.DataFrame(columns=columns)


def over_thresholds(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means over seeds at the thresholds that all have; top1_std: the sample deviation."""
    groups = pd.concat(curves).astype(float).groupby("threshold")
    mean = groups.mean().assign(top1_std=groups["top1"].std())
    return mean[groups.size() == len(curves)].reset_index()


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


def _one_type_per_column(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of lists or of values of several types as JSON text, which parquet can store."""
    for name in [name for name in table if table[name].dtype.kind == "O"]:
        types = {type(value) for value in table[name].dropna()}
        if len(types) > 1 or types & {list, dict}:
            table[name] = table[name].map(json.dumps, na_action="ignore")
        table[name] = table[name].convert_dtypes()
    return table


def write_table(collection: "Collection", output: Path, *, mean: bool = False) -> None:
    """Write the table as .csv or .parquet.

    Args:
        collection: see `lfvit.results.collect.collect`.
        output: its suffix decides.
        mean: one row per group and operating point instead of one per run, see `over_seeds`.

    Raises:
        DataError: there is no run.
    """
    collection.require_runs()
    table = over_seeds(collection.table) if mean else collection.table
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".parquet":
        table.to_parquet(output, index=False)
    else:
        table.to_csv(output, index=False)

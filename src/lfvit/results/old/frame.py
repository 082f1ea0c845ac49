"""Collected runs as one tidy table: a row per run and operating point."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lfvit.results.old.evaluated import Run, flatten
from lfvit.results.old.speeds import Speeds
from lfvit.results.old.tables import operating_points

MEANS = ("top1", "top5", "gmacs", "exit_fraction", "consistency", "gap", "images_per_second")


def make_table(runs: Sequence[Run], speeds: Sequence[Speeds]) -> pd.DataFrame:
    """One row per run and operating point: tidy, ready for CSV or parquet.

    Columns: model (readable), group (equal where only the seed differs), seed, place, data; run,
    kind, rule, value, outcome, threshold (see `operating_points`); top1 and top5 in percent, gmacs,
    exit_fraction, consistency, gap, images; images_per_second with throughput_from;
    pareto, whether no other row on the same data is better in top-1 at no more GMACs; seeds and
    the mean and standard deviation over them, such as top1_mean and top1_std; then what is known of
    training and evaluation, and the training's settings as config.*.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        for point in operating_points(run.evaluation):
            speed = next((s for each in speeds if (s := each.of(run, point))), None)
            rows.append(
                {
                    "model": run.model,
                    "group": run.group,
                    "seed": run.seed,
                    "place": run.place,
                    "data": run.data,
                    **{key: point.get(key) for key in ("run", "kind", "rule", "value", "outcome")},
                    **{key: point.get(key) for key in ("threshold", *MEANS[:-1], "images")},
                    "images_per_second": speed and speed[0],
                    "throughput_from": speed and speed[1],
                    **_about(run),
                }
            )
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    frame[list(MEANS)] = frame[list(MEANS)].astype("float64")
    frame.insert(frame.columns.get_loc("images"), "pareto", pareto(frame))
    means = over_seeds(frame)
    keys = ["group", "run"]
    columns = [*keys, "seeds", *(f"{name}_{part}" for name in MEANS for part in ("mean", "std"))]
    frame = frame.merge(means[columns], on=keys, how="left", validate="many_to_one")
    return one_type_per_column(frame)


def _about(run: Run) -> dict[str, Any]:
    evaluated = run.evaluation.get("environment") or {}
    known = {
        "method": run.evaluation["method"]["name"],
        "reducer": (run.evaluation.get("reducer") or {}).get("name", "none"),
        "image_size": run.evaluation.get("image_size"),
        "checkpoint": Path(run.evaluation["checkpoint"]).name,
        "precision": run.evaluation.get("precision"),
        "status": run.status,
        **{
            key: run.metrics.get(key)
            for key in ("epochs", "parameters", "train_images", "train_seconds", "machine")
        },
        "command": run.environment.get("command"),
        "commit": run.environment.get("commit"),
        "evaluation_command": evaluated.get("command"),
        "evaluation_commit": evaluated.get("commit"),
        "evaluation_machine": evaluated.get("machine"),
    }
    return known | {f"config.{key}": value for key, value in flatten(run.config).items()}


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: one row per group and operating point, in the order they came.

    Several runs of one seed count as one. The spread is the sample standard deviation, empty for a
    single seed. ``pareto`` is that of the means.
    """
    keys = ["group", "run"]
    first = frame.drop_duplicates(keys)[["model", *keys, "data", "kind", "rule", "value", "images"]]
    numbers = ["threshold", *MEANS]
    values = frame.assign(threshold=frame["threshold"].astype("float64"))
    per_seed = values.groupby([*keys, "seed"], sort=False, dropna=False)[numbers].mean()
    grouped = per_seed.groupby(level=keys, sort=False)
    table = first.set_index(keys)
    table["seeds"] = grouped.size()
    for name in numbers:
        table[f"{name}_mean"], table[f"{name}_std"] = grouped[name].mean(), grouped[name].std()
    table = table.reset_index()
    named = table.assign(top1=table["top1_mean"], gmacs=table["gmacs_mean"])
    return table.assign(pareto=pareto(named))


def pareto(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Whether no row on the same data has more top-1 at no more GMACs, or as much at fewer."""
    best = pd.Series(False, index=frame.index)
    for _, rows in frame.dropna(subset=["top1", "gmacs"]).groupby("data", dropna=False):
        ordered = rows.sort_values(["gmacs", "top1"], ascending=[True, False])
        least_cost = ordered.groupby("top1")["gmacs"].transform("min")
        leads = (ordered["top1"] >= ordered["top1"].cummax()) & (ordered["gmacs"] == least_cost)
        best[ordered.index[leads]] = True
    return best


def one_type_per_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold lists or values of several kinds as JSON text, which parquet can store."""
    for name in [name for name in frame if frame[name].dtype.kind == "O"]:
        kinds = {type(value) for value in frame[name].dropna()}
        if kinds == {int}:
            frame[name] = frame[name].astype("Int64")
        elif len(kinds) > 1 or kinds & {list, dict}:
            frame[name] = frame[name].map(json.dumps, na_action="ignore")
    return frame

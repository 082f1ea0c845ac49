"""The numbers of the report page's charts: what the script in it draws, as plain values."""

from collections.abc import Iterable, Mapping
from functools import cache
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lfvit.results.old.collect import Collection
from lfvit.results.old.evaluated import Run, kind_of
from lfvit.results.old.frame import over_seeds
from lfvit.results.old.speeds import Speeds
from lfvit.results.old.tables import is_plain

IMAGENET_IMAGES = 50_000
CURVE = ("threshold", "top1", "exit_fraction", "gmacs", "consistency", "gap")


def series(found: Collection) -> list[dict[str, Any]]:
    """One entry per model: its early-exit curve and its operating points, means over seeds.

    ``one_pass`` is the GMACs of the plain one-pass model of the same backbone on the same data,
    what costs are shares of; None where there is none.
    """
    means = over_seeds(found.table)
    entries = []
    for group, runs in _by_group(found.runs).items():
        rows = means[(means["group"] == group) & (means["kind"] != "threshold")]
        marked = [_point(row, found.table) for row in rows.to_dict("records")]
        entries.append(
            {
                "name": runs[0].model,
                "method": kind_of(runs[0]),
                "note": f"{runs[0].data}, {_seeds_in_words(runs)}",
                "published": False,
                "one_pass": one_pass_gmacs(found.runs, runs[0]),
                "curve": _mean_curve(runs, found.speeds),
                "points": [point for point in marked if point["top1"] is not None],
            }
        )
    return entries


def _by_group(runs: Iterable[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def _seeds_in_words(runs: list[Run]) -> str:
    seeds = sorted({str(run.seed) for run in runs if run.seed is not None})
    if not seeds:
        return "seed not known"
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of seeds {', '.join(seeds)}"


def _point(row: Mapping[Any, Any], table: pd.DataFrame) -> dict[str, Any]:
    same = table[(table["group"] == row["group"]) & (table["run"] == row["run"])]
    sources = same["throughput_from"].dropna()
    return {
        "run": row["run"],
        "kind": row["kind"],
        "eta": number(row["threshold_mean"]),
        "top1": number(row["top1_mean"]),
        "spread": number(row["top1_std"]),
        "gmacs": number(row["gmacs_mean"]),
        "exits": number(row["exit_fraction_mean"]),
        "speed": number(row["images_per_second_mean"]),
        "how": None if sources.empty else sources.iloc[0],
    }


def _mean_curve(runs: list[Run], speeds: list[Speeds]) -> list[dict[str, Any]]:
    """Means over seeds at every threshold that all runs of a group have.

    With images per second where the model was timed at shares of exits around that of the point.
    """
    frames = [pd.DataFrame(run.evaluation.get("curve") or []) for run in runs]
    if any(frame.empty for frame in frames):
        return []
    frames = [
        frame.assign(speed=[_speed(speeds, run, point) for point in run.evaluation["curve"]])
        for run, frame in zip(runs, frames, strict=True)
    ]
    several = pd.concat(
        [frame.assign(seed=str(run.seed)) for run, frame in zip(runs, frames, strict=True)]
    )
    columns = [*CURVE[1:4], "speed"]
    complete = several.groupby("threshold").size() == len(runs)
    per_seed = several.groupby(["threshold", "seed"])[columns].mean()
    means = per_seed.groupby("threshold").mean()[complete]
    return [
        {"eta": eta, "top1": top1, "exits": exits, "gmacs": gmacs, "speed": number(speed)}
        for eta, top1, exits, gmacs, speed in means.itertuples(name=None)
    ]


def _speed(speeds: list[Speeds], run: Run, point: Mapping[str, Any]) -> float:
    known = (found for s in speeds if (found := s.of(run, {"run": None, **point})))
    return next((speed for speed, _ in known), nan)


def one_pass_gmacs(runs: Iterable[Run], run: Run) -> float | None:
    """GMACs of the last plain one-pass model of this run's backbone, image size and data."""

    def size(other: Run) -> tuple[str, str]:
        found = other.evaluation
        return str((found.get("backbone"), found.get("image_size"))), other.data

    plain = [
        other.evaluation["first"]["gmacs"]
        for other in runs
        if is_plain(other.evaluation) and size(other) == size(run)
    ]
    return plain[-1] if plain else None


def curves(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One entry per two-pass run for the threshold slider, columns as in evaluate.json's curve.

    consistency and gap are None where the file is from before they were measured.
    """
    entries = []
    for run in runs:
        found = run.evaluation
        if not found.get("curve"):
            continue
        columns: dict[str, Any] = {
            key: [point[key] for point in found["curve"]]
            if all(key in point for point in found["curve"])
            else None
            for key in CURVE
        }
        calibration = found.get("calibration") or {}
        entries.append(
            {
                "name": run.name,
                "images": found["images"],
                "first": found["first"],
                "second": found["second"],
                "start": (found.get("operating_point") or {}).get("threshold", 0.7),
                "max_loss": next(
                    (
                        rule["threshold"]
                        for rule in calibration.get("rules", [])
                        if rule["name"] == "max_loss"
                    ),
                    None,
                ),
                **columns,
            }
        )
    return entries


def published() -> list[dict[str, Any]]:
    """The papers' figures as entries like those of `series`."""
    papers = published_figures()
    lf, cf = papers["lf_vit"], papers["cf_vit"]
    frequency, frontier = papers["frequency"], papers["frontier"]
    a100 = "A100, batch 1024"
    table1 = frequency["table1"]

    def of(rows: list[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    lf_rows, cf_rows = lf["table2_vs_backbone"], cf["table2_vs_backbone"]
    lf_vit, cf_vit = "LF-ViT, Table 2", "CF-ViT, Table 2"
    entries = [
        _published("LF-ViT, DeiT-S", lf_vit, of(lf_rows, model="LF-ViT"), 4.6, a100),
        _published("DeiT-S", lf_vit, of(lf_rows, model="DeiT-S"), 4.6, a100),
        _published("CF-ViT, DeiT-S", cf_vit, of(cf_rows, model="CF-ViT (DeiT-S)"), 4.6, a100),
        _published("LV-ViT-S", cf_vit, of(cf_rows, model="LV-ViT-S"), 6.6, a100),
        _published("CF-ViT, LV-ViT-S", cf_vit, of(cf_rows, model="CF-ViT (LV-ViT-S)"), 6.6, a100),
        *(
            _published(f"{name}, {size}", "Frequency-aware, Table 1", rows, cost)
            for size, cost in (("DeiT-T", 1.3), ("DeiT-S", 4.6), ("DeiT-B", 17.6))
            for name, key in (("Frequency-aware", "frequency"), ("ToMe", "ToMe"))
            if (rows := of(table1, model=size, method=key))
        ),
        _published("EViT, DeiT-S", "EViT, keep rates", frontier["evit_keep_rate"], 4.6),
        _published("AdaptiveNN, DeiT-S", "AdaptiveNN", frontier["adaptivenn_deit_s"], 4.6),
        _published("ThinkingViT", "ThinkingViT", frontier["thinkingvit"], None),
    ]
    return entries


@cache
def published_figures() -> dict[str, Any]:
    """papers.yaml."""
    return yaml.safe_load((Path(__file__).parent / "papers.yaml").read_text(encoding="utf-8"))


def _published(
    name: str,
    source: str,
    rows: list[dict[str, Any]],
    one_pass: float | None,
    machine: str | None = None,
) -> dict[str, Any]:
    settings = {"m": "m = {}", "eta": "η = {}", "keep": "keep rate {}"}
    points = [
        {
            "run": ", ".join(
                text.format(row[key]) for key, text in settings.items() if row.get(key) is not None
            )
            or "as printed",
            "kind": "pass",
            "eta": row.get("eta"),
            "top1": row["top1"],
            "spread": None,
            "gmacs": row["gmacs"],
            "exits": None,
            "speed": row.get("throughput"),
            "how": row.get("throughput") and machine,
        }
        for row in rows
    ]
    return {
        "name": name,
        "method": name.split(",")[0],
        "note": f"{source}; ImageNet-1k",
        "published": True,
        "one_pass": one_pass,
        "curve": [],
        "points": points,
    }


def number(value: Any) -> Any:
    """A value for JSON: None for NaN and other missing ones."""
    if value is None or value is pd.NA or (isinstance(value, float) and isnan(value)):
        return None
    return value

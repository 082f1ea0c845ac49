"""The numbers of the report page: curves, operating points and published figures as tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lfvit.results.collect import Collection, Run
from lfvit.results.table import over_seeds


def curves(collection: Collection) -> pd.DataFrame:
    """Early exit at every threshold, means over the seeds of each model.

    Columns: model, threshold, top1 (percent), exit_fraction, gmacs, share (percent of the one-pass
    model's GMACs, see `one_pass_gmacs`), images_per_second.
    """
    means = []
    for model, runs in collection.by_model().items():
        frames = [_curve(collection, run) for run in runs if run.evaluation.curve]
        if frames:
            thresholds = pd.concat(frames).groupby("threshold")
            complete = thresholds.size() == len(frames)  # thresholds that all seeds have
            mean = thresholds.mean()[complete].reset_index()
            mean.insert(0, "model", model)
            mean["share"] = _share(mean["gmacs"], one_pass_gmacs(collection.runs, runs[0]))
            means.append(mean)
    columns = ("model", "threshold", "top1", "exit_fraction", "gmacs", "share", "images_per_second")
    return pd.concat(means)[[*columns]] if means else pd.DataFrame(columns=columns)


def _curve(collection: Collection, run: Run) -> pd.DataFrame:
    curve = pd.DataFrame([dict(point) for point in run.evaluation.curve])
    speeds = [
        next((s[0] for timed in collection.throughput if (s := timed.of(run, share))), None)
        for share in curve["exit_fraction"]
    ]
    return curve.assign(images_per_second=pd.Series(speeds, dtype="float64"))


def points(collection: Collection) -> pd.DataFrame:
    """Operating points, means over the seeds of each model.

    Columns: those of `lfvit.results.table.over_seeds`, means without the suffix, and share.
    """
    means = over_seeds(collection.table)
    means = means.rename(columns=lambda name: name.removesuffix("_mean"))
    first = {run.group: run for run in reversed(collection.runs)}
    shares = [
        _share(gmacs, one_pass_gmacs(collection.runs, first[group]))
        for group, gmacs in zip(means["group"], means["gmacs"], strict=True)
    ]
    return means.assign(share=pd.Series(shares, dtype="float64"))


def one_pass_gmacs(runs: Sequence[Run], run: Run) -> float | None:
    """GMACs of the one-pass model without a reducer of this run's backbone, image size and data."""

    def size(other: Run) -> tuple[Any, ...]:
        return other.evaluation.backbone, other.evaluation.image_size, other.data

    plain = [other for other in runs if other.is_plain and size(other) == size(run)]
    return plain[-1].evaluation.passes[0].gmacs if plain else None


def _share(gmacs: Any, one_pass: float | None) -> Any:
    return None if one_pass is None else 100 * gmacs / one_pass


def published() -> pd.DataFrame:
    """The papers' figures on ImageNet-1k.

    Columns: model, source, setting, top1, gmacs, share, images_per_second (A100, batch 1024).
    """
    papers = read_papers()
    tables = papers["lf_vit"]["table2_vs_backbone"], papers["cf_vit"]["table2_vs_backbone"]
    frontier, sizes = papers["frontier"], {"DeiT-T": 1.3, "DeiT-S": 4.6, "DeiT-B": 17.6}
    rows = [
        _published(row["model"], source, row, 6.6 if "LV-ViT" in row["model"] else 4.6)
        for source, table in zip(("LF-ViT, Table 2", "CF-ViT, Table 2"), tables, strict=True)
        for row in table
    ]
    rows += [
        _published(f"{row['method']}, {row['model']}", "Frequency-aware, Table 1", row, one_pass)
        for row in papers["frequency"]["table1"]
        if row["method"] in ("frequency", "ToMe") and (one_pass := sizes.get(row["model"]))
    ]
    for name, key, one_pass in (
        ("EViT, DeiT-S", "evit_keep_rate", 4.6),
        ("AdaptiveNN, DeiT-S", "adaptivenn_deit_s", 4.6),
        ("ThinkingViT", "thinkingvit", None),
    ):
        rows += [_published(name, name.partition(",")[0], row, one_pass) for row in frontier[key]]
    return pd.DataFrame(rows).drop_duplicates(["model", "setting", "top1", "gmacs"])


def _published(
    model: str, source: str, row: dict[str, Any], one_pass: float | None
) -> dict[str, Any]:
    settings = {"m": "m = {}", "eta": "η = {}", "keep": "keep rate {}"}
    given = [text.format(row[key]) for key, text in settings.items() if row.get(key) is not None]
    return {
        "model": model,
        "source": source,
        "setting": ", ".join(given) or "as printed",
        "top1": row["top1"],
        "gmacs": row["gmacs"],
        "share": _share(row["gmacs"], one_pass),
        "images_per_second": row.get("throughput"),
    }


def read_papers() -> dict[str, Any]:
    """The content of papers.yaml."""
    return yaml.safe_load((Path(__file__).parent / "papers.yaml").read_text(encoding="utf-8"))

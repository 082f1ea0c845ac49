"""The numbers of the report page: curves, operating points and published figures as tables."""

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lfvit.results.collect import Collection, Run
from lfvit.results.speed import images_per_second
from lfvit.results.table import over_seeds

PUBLISHED = {
    ("lf_vit", "table2_vs_backbone"): "LF-ViT, Table 2",
    ("cf_vit", "table2_vs_backbone"): "CF-ViT, Table 2",
    ("frequency", "table1"): "Frequency-aware, Table 1",
    ("frontier", "evit_keep_rate"): "EViT",
    ("frontier", "adaptivenn_deit_s"): "AdaptiveNN",
    ("frontier", "thinkingvit"): "ThinkingViT",
}
"""Tables of papers.yaml that the chart shows, and what it calls them."""
ONE_PASS = {"DeiT-T": 1.3, "DeiT-S": 4.6, "DeiT-B": 17.6, "LV-ViT": 6.6, "ThinkingViT": nan}
"""GMACs of the one-pass models that published ones are shares of, by a part of the name."""


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
            mean["share"] = 100 * mean["gmacs"] / one_pass_gmacs(collection.runs, runs[0])
            means.append(mean)
    columns = ("model", "threshold", "top1", "exit_fraction", "gmacs", "share", "images_per_second")
    return pd.concat(means)[[*columns]] if means else pd.DataFrame(columns=columns)


def _curve(collection: Collection, run: Run) -> pd.DataFrame:
    curve = pd.DataFrame([dict(point) for point in run.evaluation.curve])
    speeds = images_per_second(collection.benchmarks, run, curve["exit_fraction"])
    return curve.assign(images_per_second=speeds["images_per_second"].astype("float64"))


def points(collection: Collection) -> pd.DataFrame:
    """Operating points, means over the seeds of each model.

    Columns: those of `lfvit.results.table.over_seeds`, means without the suffix; share; and kind:
    "pass", "rule", or "guarantee" for a rule with a bound on the risk.
    """
    means = over_seeds(collection.table)
    means = means.rename(columns=lambda name: name.removesuffix("_mean"))
    first = {run.group: run for run in reversed(collection.runs)}
    one_pass = {group: one_pass_gmacs(collection.runs, run) for group, run in first.items()}
    shares = 100 * means["gmacs"] / means["group"].map(one_pass).astype("float64")
    kind = means["rule"].str.startswith("pass").map({True: "pass", False: "rule"})
    kind = kind.mask(means["rule"].str.contains("<="), "guarantee")
    return means.assign(share=shares, kind=kind)


def one_pass_gmacs(runs: Sequence[Run], run: Run) -> float:
    """GMACs of the one-pass model without a reducer of this run's backbone, image size and data.

    NaN where there is none.
    """

    def size(other: Run) -> tuple[Any, ...]:
        return other.evaluation.backbone, other.evaluation.image_size, other.data

    plain = [other for other in runs if other.is_plain and size(other) == size(run)]
    return plain[-1].evaluation.passes[0].gmacs if plain else nan


def published() -> pd.DataFrame:
    """The papers' figures on ImageNet-1k.

    Columns: model, source, setting, top1, gmacs, share, images_per_second (A100, batch 1024).
    """
    papers, settings = read_papers(), {"m": "m = {}", "eta": "η = {}", "keep": "keep rate {}"}
    rows = []
    for (paper, table), source in PUBLISHED.items():
        for row in papers[paper][table]:
            method = row.get("method", "ToMe")
            if method not in ("ToMe", "frequency"):  # of many methods in one table, these
                continue
            name = row.get("model", source) + (f", {method}" if "method" in row else "")
            one_pass = next((cost for part, cost in ONE_PASS.items() if part in name), 4.6)
            given = [text.format(row[k]) for k, text in settings.items() if row.get(k) is not None]
            rows.append(
                {
                    "model": name,
                    "source": source,
                    "setting": ", ".join(given) or "as printed",
                    "top1": row["top1"],
                    "gmacs": row["gmacs"],
                    "share": 100 * row["gmacs"] / one_pass,
                    "images_per_second": row.get("throughput"),
                }
            )
    return pd.DataFrame(rows).drop_duplicates(["model", "setting", "top1", "gmacs"])


def read_papers() -> dict[str, Any]:
    """The content of papers.yaml."""
    return yaml.safe_load((Path(__file__).parent / "papers.yaml").read_text(encoding="utf-8"))

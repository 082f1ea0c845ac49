"""Published figures, from papers.yaml beside this module."""

from functools import cache
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lfvit.utils.validation import check_choice

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = {
    "lf_vit.table2_vs_backbone": "LF-ViT, Table 2",
    "cf_vit.table2_vs_backbone": "CF-ViT, Table 2",
    "frequency.table1": "Frequency-aware, Table 1",
    "frontier.evit_keep_rate": "EViT",
    "frontier.adaptivenn_deit_s": "AdaptiveNN",
    "frontier.thinkingvit": "ThinkingViT",
}
"""Tables of papers.yaml that the chart shows, and what it calls them."""
ONE_PASS = {"DeiT-T": 1.3, "DeiT-S": 4.6, "DeiT-B": 17.6, "LV-ViT": 6.6, "ThinkingViT": nan}
"""GMACs of the one-pass models that published ones are shares of, by a part of the name."""


def published_rows(source: str) -> list[dict[str, Any]]:
    """Rows of papers.yaml, such as those of "lf_vit.table2_vs_backbone".

    Raises:
        ConfigError: there are none of that name.
    """
    check_choice("published", source, _papers())
    return _papers()[source]


@cache
def _papers() -> dict[str, list[dict[str, Any]]]:
    text = Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8")
    papers = yaml.safe_load(text)
    tables = {f"{paper}.{name}": t for paper, named in papers.items() for name, t in named.items()}
    return {name: rows for name, rows in tables.items() if isinstance(rows, list)}


def published_points() -> "pd.DataFrame":
    """The papers' figures on ImageNet-1k.

    Columns: model, source, setting, top1, gmacs, share, images_per_second (A100, batch 1024).
    """
    settings = {"m": "m = {}", "eta": "η = {}", "keep": "keep rate {}"}
    import pandas as pd

    rows = []
    for table, source in PUBLISHED.items():
        for row in published_rows(table):
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

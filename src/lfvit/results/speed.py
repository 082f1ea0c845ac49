"""The files and tables of benchmark.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lfvit.results.plots import plot_speed
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, print_table, to_markdown

Rows = Sequence[Mapping[str, Any]]
COLUMNS = {
    "model": ("model", ""),
    "exit_fraction": ("exits", ".0%"),
    "batch_size": ("batch", ""),
    "gmacs": ("GMACs", ".3f"),
    "images_per_second": ("images/s", ".1f"),
    "images_per_second_slowest": ("slowest", ".1f"),
    "images_per_second_fastest": ("fastest", ".1f"),
    "latency_ms_p50": ("p50 ms", ".1f"),
    "latency_ms_p95": ("p95 ms", ".1f"),
    "measured_speedup": ("speed-up", ".2f"),
    "ideal_speedup": ("ideal", ".2f"),
    "share_of_ideal": ("of ideal", ".0%"),
}


def write_speed(folder: Path, about: Mapping[str, Any], rows: Rows) -> None:
    """Write benchmark.csv, .json, .md and .png.

    Args:
        folder: of the run.
        about: "settings" that all rows share, and the "environment" of the run.
        rows: of `lfvit.commands.benchmark`.
    """
    settings, environment = about["settings"], about["environment"]
    write_json(folder / "benchmark.json", {**about, "rows": rows})
    table = _with_titles(rows)
    packages = environment["packages"]
    common = {
        **settings,
        **{key: environment[key] for key in ("machine", "threads", "commit")},
        **{key: packages[key] for key in ("torch", "timm")},
    }
    table.drop(columns="title").assign(**common).to_csv(folder / "benchmark.csv", index=False)
    plot_speed(table, folder / "benchmark.png")
    text = [
        "# Speed",
        f"{code(environment['command'])}, commit {environment['commit']}, "
        f"{environment['machine']}, {environment['threads']} threads, Python "
        f"{environment['python']}, torch {packages['torch']}, timm {packages['timm']}. Backbone "
        f"{settings['backbone']}, {settings['image_size']} x {settings['image_size']} pixels.",
        "Medians of interleaved repetitions, with the slowest and the fastest; latency per batch. "
        "The speed-up is over the first row of the same batch size, its ideal the ratio of their "
        "multiply-accumulates. A star marks the batch size of highest throughput of those listed.",
    ]
    for title, group in table.groupby("title", sort=False):
        text.append(f"## {title}\n\n{to_markdown(_starred(group), **_columns(COLUMNS))}")
    text.append("![Measured against ideal speed-up](benchmark.png)")
    (folder / "benchmark.md").write_text("\n\n".join(text) + "\n")


def print_speed(rows: Rows) -> None:
    """The same tables on the terminal, without ranges and latencies."""
    narrow = {k: v for k, v in COLUMNS.items() if not k.startswith(("images_per_second_", "lat"))}
    for title, group in _with_titles(rows).groupby("title", sort=False):
        print_table(_starred(group), **_columns(narrow), title=str(title))


def _with_titles(rows: Rows) -> pd.DataFrame:
    """The rows, with the title of those that are compared with each other."""
    table = pd.DataFrame(rows)
    compiled = table["compiled"].map({True: "compiled", False: "not compiled"})
    return table.assign(
        title=table["task"].str.capitalize() + ", " + table["precision"] + ", " + compiled
    )


def _starred(table: pd.DataFrame) -> pd.DataFrame:
    star = table["best_batch"].map({True: "*"}).fillna("")
    return table.assign(batch_size=table["batch_size"].astype(str) + star)


def _columns(columns: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Titles, and formats of all columns with numbers."""
    return {
        "titles": {key: title for key, (title, _) in columns.items()},
        "formats": {key: spec for key, (_, spec) in columns.items() if key != "model"},
    }

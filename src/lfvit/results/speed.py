"""The files and tables of benchmark.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, print_table, to_markdown

Rows = Sequence[Mapping[str, Any]]
TITLES = {
    "model": "model",
    "exit_fraction": "exits",
    "batch_size": "batch",
    "gmacs": "GMACs",
    "images_per_second": "images/s",
    "images_per_second_slowest": "slowest",
    "images_per_second_fastest": "fastest",
    "latency_ms_p50": "p50 ms",
    "latency_ms_p95": "p95 ms",
    "measured_speedup": "speed-up",
    "ideal_speedup": "ideal",
    "share_of_ideal": "of ideal",
}
FORMATS = {
    **{name: ".1f" for name in TITLES if name != "model"},
    "exit_fraction": ".0%",
    "batch_size": "",
    "gmacs": ".3f",
    "measured_speedup": ".2f",
    "ideal_speedup": ".2f",
    "share_of_ideal": ".0%",
}


def write_speed(folder: Path, about: Mapping[str, Any], rows: Rows) -> None:
    """Write benchmark.csv, .json and .md.

    Args:
        folder: of the run.
        about: "settings" that all rows share, and the "environment" of the run.
        rows: of `lfvit.commands.benchmark`.
    """
    settings, environment = about["settings"], about["environment"]
    write_json(folder / "benchmark.json", {**about, "rows": rows})
    packages = environment["packages"]
    common = {key: environment[key] for key in ("machine", "threads", "commit")}
    common |= {**settings, **{key: packages[key] for key in ("torch", "timm")}}
    pd.DataFrame(rows).assign(**common).to_csv(folder / "benchmark.csv", index=False)
    groups = _groups(rows)
    text = [
        "# Speed",
        f"{code(environment['command'])}, commit {environment['commit']}, "
        f"{environment['machine']}, {environment['threads']} threads, Python "
        f"{environment['python']}, torch {packages['torch']}, timm {packages['timm']}. Backbone "
        f"{settings['backbone']}, {settings['image_size']} x {settings['image_size']} pixels.",
        "Medians of interleaved repetitions, with the slowest and the fastest; latency per batch. "
        "The speed-up is over the first row of the same batch size, its ideal the ratio of their "
        "multiply-accumulates.",
        *(f"## {title}\n\n{to_markdown(g, FORMATS, TITLES)}" for title, g in groups.items()),
    ]
    (folder / "benchmark.md").write_text("\n\n".join(text) + "\n")


def print_speed(rows: Rows) -> None:
    """The same tables on the terminal, without ranges and latencies."""
    wide = ("images_per_second_", "latency")
    narrow = {name: title for name, title in TITLES.items() if not name.startswith(wide)}
    for title, group in _groups(rows).items():
        print_table(group, FORMATS, narrow, title=title)


def _groups(rows: Rows) -> dict[str, pd.DataFrame]:
    """Title -> the rows that are compared with each other."""
    groups = pd.DataFrame(rows).groupby(["task", "precision", "compiled"], sort=False)
    return {
        f"{str(task).title()}, {precision}, {'compiled' if compiled else 'not compiled'}": group
        for (task, precision, compiled), group in groups
    }

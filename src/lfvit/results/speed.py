"""Speed: the files and tables of benchmark.py, and images per second of runs from them.

``python -m lfvit.results.speed`` writes the tables of docs/speed.md anew, from docs/benchmark/.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lfvit.results.files import Benchmark
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, print_table, to_markdown
from lfvit.utils.paths import CHECKOUT

if TYPE_CHECKING:
    from lfvit.results.collect import Run

Rows = Sequence[Mapping[str, Any]]
PAGE = CHECKOUT / "docs" / "speed.md"
BLOCK = re.compile(r"(<!-- (benchmark/\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
SETTING = ["batch_size", "precision", "compiled"]
TITLES = {
    "model": "model",
    "exit_fraction": "exits",
    "top1": "top-1",
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
WITHOUT_RANGES = {k: v for k, v in TITLES.items() if not k.startswith("images_per_second_")}
NOT_ON_A_TERMINAL = ("latency_ms_p95", "ideal_speedup")
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
    text = [
        "# Speed",
        _origin(about),
        "Medians of interleaved repetitions, with the slowest and the fastest; latency per batch. "
        "The speed-up is over the first row of the same batch size, its ideal the ratio of their "
        "multiply-accumulates.",
        *(f"## {title}\n\n{table}" for title, table in _tables(rows, TITLES).items()),
    ]
    (folder / "benchmark.md").write_text("\n\n".join(text) + "\n", "utf-8")


def _origin(about: Mapping[str, Any]) -> str:
    """Command, commit, machine and versions, in a sentence."""
    settings, environment = about["settings"], about["environment"]
    versions = environment["packages"]
    shown = [f"{k} {versions[k]}" for k in ("torch", "timm", "onnxruntime") if k in versions]
    return (
        f"{code(environment['command'])}, commit {environment['commit']}, "
        f"{environment['machine']}, {environment['threads']} threads, Python "
        f"{environment['python']}, {', '.join(shown)}. Backbone "
        f"{settings['backbone']}, {settings['image_size']} x {settings['image_size']} pixels."
    )


def updated_page(page: Path = PAGE) -> str:
    """The page with the tables of every folder that it names, anew.

    They are between ``<!-- benchmark/cpu -->`` and ``<!-- end -->``.
    """

    def block(match: re.Match[str]) -> str:
        path = page.parent / match[2] / "benchmark.json"
        if not path.is_file():
            return f"{match[1]}\nNot measured yet.\n\n"
        content = json.loads(path.read_text("utf-8"))
        tables = _tables(content["rows"], WITHOUT_RANGES)
        text = [
            f"{_origin(content)} [All rows]({match[2]}/benchmark.md), and as `.csv` and `.json`.",
            *(f"**{title}**\n\n{table}" for title, table in tables.items()),
        ]
        return match[1] + "\n\n".join(["", *text, ""]).lstrip("\n")

    return BLOCK.sub(block, page.read_text("utf-8"))


def print_speed(rows: Rows) -> None:
    """The same tables on the terminal, as wide as 80 characters allow."""
    narrow = {k: v for k, v in WITHOUT_RANGES.items() if k not in NOT_ON_A_TERMINAL}
    for title, group in _groups(rows).items():
        print_table(group, FORMATS, _known(group, narrow), title=title)


def _tables(rows: Rows, titles: Mapping[str, str]) -> dict[str, str]:
    """Title -> table in Markdown."""
    groups = _groups(rows)
    return {name: to_markdown(g, FORMATS, _known(g, titles)) for name, g in groups.items()}


def _known(group: pd.DataFrame, titles: Mapping[str, str]) -> dict[str, str]:
    """Without accuracy, where no model is trained."""
    known = group.dropna(axis=1, how="all").columns
    return {name: title for name, title in titles.items() if name != "top1" or name in known}


def _groups(rows: Rows) -> dict[str, pd.DataFrame]:
    """Title -> the rows that are compared with each other."""
    frame = pd.DataFrame([{"runtime": "torch", **row} for row in rows])
    groups: dict[str, pd.DataFrame] = {}
    for key, group in frame.groupby(["runtime", "task", "precision", "compiled"], sort=False):
        runtime, task, precision, compiled = key
        kind = "compiled" if compiled else "not compiled"
        kind = "onnxruntime" if runtime == "onnx" else kind
        groups[f"{str(task).title()}, {precision}, {kind}"] = group
    return groups


def read_benchmarks(contents: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The timed inference in PyTorch of several benchmark.json, a row per model and setting.

    Columns: file, a number; machine, method, checkpoint (None: random weights), batch_size,
    precision, compiled, exit_fraction, gmacs, images_per_second.
    """
    rows: list[dict[str, Any]] = []
    for number, content in enumerate(contents):
        benchmark = Benchmark(**content)
        for row in benchmark.rows:
            if row.task == "inference" and row.runtime == "torch":
                checkpoint = row.settings.get("ckpt_path")
                known = {
                    "file": number,
                    "machine": (benchmark.environment or {}).get("machine"),
                    "method": row.settings.get("name"),
                    "checkpoint": os.path.realpath(str(checkpoint)) if checkpoint else None,
                }
                rows.append(known | {"exit_fraction": 0.0} | row.model_dump(exclude_none=True))
    return pd.DataFrame(rows)


def images_per_second(
    benchmarks: pd.DataFrame, run: "Run", exit_fraction: "pd.Series[float]"
) -> pd.DataFrame:
    """Images per second of a run at some shares of early exits.

    Of the largest timed batch of its weights, or of a random model of the same method and cost
    within a percent: the number of classes may differ. Time per image is linear in the share of
    images that exit, so it is interpolated between two measured shares, and unknown beyond them.

    Args:
        benchmarks: see `read_benchmarks`.

    Returns:
        Columns images_per_second and throughput_from, the setting in words; empty if not known.
    """
    shares = exit_fraction.astype("float64").round(9)
    speeds = pd.DataFrame({"images_per_second": np.nan, "throughput_from": None}, shares.index)
    if benchmarks.empty:
        return speeds
    evaluation = run.evaluation
    first, last = evaluation.passes[0].gmacs, evaluation.passes[-1].gmacs
    cost = last - benchmarks["exit_fraction"] * (last - first)
    checkpoint = os.path.realpath(evaluation.checkpoint)
    same = benchmarks[
        (benchmarks["method"] == evaluation.method["name"])
        & ((benchmarks["gmacs"] / cost - 1).abs() < 0.01)
        & (benchmarks["checkpoint"].isna() | (benchmarks["checkpoint"] == checkpoint))
    ]
    for _, rows in same.groupby("file"):
        if speeds.loc[shares.notna(), "images_per_second"].notna().all():
            break
        *_, ((batch, precision, compiled), rows) = rows.groupby(SETTING)
        rows = rows.sort_values("exit_fraction")
        measured = rows["exit_fraction"].to_numpy(dtype=float).round(9)
        times = 1 / rows["images_per_second"].to_numpy()
        seconds = np.interp(shares, measured, times, left=np.nan, right=np.nan)
        source = f"batch {batch}, {precision}{', compiled' if compiled else ''}"
        source = f"{source}, {rows['machine'].iloc[0]}"
        exact = np.isclose(shares.to_numpy()[:, None], measured, rtol=0, atol=1e-6).any(axis=1)
        words = np.where(exact, source, f"{source}, interpolated between shares of exits")
        new = pd.DataFrame({"images_per_second": 1 / seconds, "throughput_from": words})
        new = new.set_index(shares.index).dropna(subset="images_per_second")
        speeds = speeds.astype({"throughput_from": object}).combine_first(new)
    return speeds


if __name__ == "__main__":
    PAGE.write_text(updated_page(), "utf-8")

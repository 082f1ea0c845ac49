"""What benchmark.py leaves behind: files, a page and a table on the screen."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lfvit.results.plots import comparisons, plot_speed
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import escape

Row = Mapping[str, Any]

COLUMNS = (
    *("model", "exits", "batch", "GMACs", "images/s", "range", "p50 ms", "p95 ms"),
    *("speed-up", "ideal", "of it"),
)
PARTS = ("model", "batch", "part", "ms", "of both passes")
LOADING = ("pipeline", "images/s", "range", "speed-up")


def write_speed(
    folder: Path,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    parts: Sequence[Row] = (),
    loading: Sequence[Row] = (),
) -> None:
    """Write benchmark.csv, .json, .md and .png.

    Args:
        about: "settings" that all rows share, and the "environment" of the run.
        rows: models, of `lfvit.commands.benchmark`.
        parts: the steps of two passes.
        loading: of `lfvit.measure.loading`.
    """
    environment = about["environment"]
    write_json(
        folder / "benchmark.json", {**about, "rows": rows, "parts": parts, "loading": loading}
    )
    common = {
        **about["settings"],
        "machine": environment["machine"],
        "threads": environment["threads"],
        "torch": environment["packages"]["torch"],
        "timm": environment["packages"]["timm"],
        "commit": environment["commit"],
    }
    timed = [*rows, *loading]
    names = list(dict.fromkeys(name for row in timed for name in row))
    with (folder / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *common])
        writer.writeheader()
        writer.writerows({**common, **row} for row in timed)
    plot_speed(rows, folder / "benchmark.png")
    (folder / "benchmark.md").write_text(speed_page(about, rows, parts, loading))


def speed_page(
    about: Mapping[str, Any],
    rows: Sequence[Row],
    parts: Sequence[Row],
    loading: Sequence[Row],
) -> str:
    """The same as a Markdown page."""
    environment, settings = about["environment"], about["settings"]
    packages = environment["packages"]
    origin = (
        f"`{environment['command']}`, commit {environment['commit']}, {environment['machine']}, "
        f"{environment['threads']} thread(s), Python {environment['python']}, torch "
        f"{packages['torch']}, timm {packages['timm']}. Backbone {settings['backbone']}, "
        f"{settings['image_size']} x {settings['image_size']} pixels."
    )
    text = [
        "# Speed",
        origin,
        "Medians of interleaved repetitions, with the slowest and the fastest; latency per batch. "
        "The speed-up is over the first row of the same batch size, its ideal the ratio of their "
        "multiply-accumulates. A star marks the batch size of highest throughput of those listed.",
    ]
    for title, group in comparisons(rows):
        text.append(f"## {title}")
        text.append(_markdown(COLUMNS, [_cells(row) for row in group]))
    if rows:
        text.append("![Measured against ideal speed-up](benchmark.png)")
    if parts:
        text.append(
            "## The steps of two passes\n\nIn fp32, not compiled, each timed alone. Selection is "
            "class attention, scores, window, and picking patches and tokens; the threshold curve "
            "is of as many images as the batch has."
        )
        text.append(_markdown(PARTS, [_part_cells(row) for row in parts]))
    if loading:
        text.append(
            "## From files to batches\n\nOn one core, from the operating system's memory: "
            "decoding, cutting to size, collating, transferring, normalising. Evaluation takes the "
            f"middle of an image, training a random crop. {_about_files(loading)}"
        )
        text.append(_markdown(LOADING, [_loading_cells(row) for row in loading]))
    return "\n\n".join(text) + "\n"


def print_speed(rows: Sequence[Row], parts: Sequence[Row], loading: Sequence[Row]) -> None:
    """The same on the screen."""
    console = Console(markup=False)
    narrow = [number for number, name in enumerate(COLUMNS) if not name.endswith(("range", "ms"))]
    for title, group in comparisons(rows):
        cells = [[_cells(row)[number] for number in narrow] for row in group]
        console.print(_screen(title, [COLUMNS[number] for number in narrow], cells))
    if parts:
        cells = [_part_cells(row) for row in parts]
        console.print(_screen("The steps of two passes", PARTS, cells))
    if loading:
        cells = [_loading_cells(row) for row in loading]
        console.print(_screen("From files to batches, on one core", LOADING, cells))


def _cells(row: Row) -> list[str]:
    exits = row["exit_fraction"]
    return [
        row["model"],
        "" if exits is None else f"{100 * exits:.0f} %",
        f"{row['batch_size']}{'*' if row['best_batch'] else ''}",
        f"{row['gmacs']:.3f}",
        f"{row['images_per_second']:.1f}",
        f"{row['images_per_second_slowest']:.1f} to {row['images_per_second_fastest']:.1f}",
        f"{row['latency_ms_p50']:.1f}",
        f"{row['latency_ms_p95']:.1f}",
        f"{row['measured_speedup']:.2f}x",
        f"{row['ideal_speedup']:.2f}x",
        f"{100 * row['share_of_ideal']:.0f} %",
    ]


def _part_cells(row: Row) -> list[str]:
    return [
        row["model"],
        str(row["batch_size"]),
        row["part"],
        f"{row['milliseconds']:.2f}",
        f"{100 * row['share']:.2f} %",
    ]


def _loading_cells(row: Row) -> list[str]:
    return [
        row["model"],
        f"{row['images_per_second']:.0f}",
        f"{row['images_per_second_slowest']:.0f} to {row['images_per_second_fastest']:.0f}",
        f"{row['measured_speedup']:.2f}x",
    ]


def _about_files(loading: Sequence[Row]) -> str:
    about = json.loads(loading[0]["settings"])
    return (
        f"{about['images']} photographs of {about['median_megapixels']:.2f} megapixels (median) to "
        f"{about['image_size']} x {about['image_size']}, {about['interpolation']}."
    )


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "|".join(["---"] + ["--:"] * (len(columns) - 1))]
    lines[1] += "|"
    return "\n".join([*lines, *(f"| {' | '.join(map(escape, row))} |" for row in cells)])


def _screen(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table

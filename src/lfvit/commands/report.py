"""Collect runs into one table or page: lfvit report DIR [DIR ...] --output FILE.

DIR is a run folder, a sweep folder, or any folder above them. The suffix of FILE decides: .html is
the page with charts, .md a page of Markdown, .csv and .parquet the table.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lfvit.errors import DataError
from lfvit.results.collect import collect
from lfvit.results.provenance import without_paths
from lfvit.results.table import write_table

SUFFIXES = (".html", ".md", ".csv", ".parquet")


def main(arguments: Sequence[str]) -> None:
    """``lfvit report``."""
    parser = argparse.ArgumentParser(
        prog="lfvit report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR")
    add("--output", type=Path, action="append", metavar="FILE", help="may be repeated")
    add("--title", default="Results")
    add("--intro", default="", help="a paragraph under the title")
    add("--mean", action="store_true", help="of .csv, .parquet: one row per model, over its seeds")
    add("--artifacts", type=Path, metavar="DIR", help="of .html: the folder of index.json")
    add("--examples", type=int, default=8, metavar="N", help="of .html: images to show")
    options = parser.parse_args(arguments)
    outputs: list[Path] = options.output or [Path("results.md")]
    for output in outputs:
        if output.suffix not in SUFFIXES:
            valid = ", ".join(SUFFIXES)
            raise DataError(f"--output {output}: unknown suffix {output.suffix!r}; valid: {valid}")
    if options.artifacts is not None and not options.artifacts.is_dir():
        raise DataError(f"--artifacts {options.artifacts}: no such folder; reproduce.py writes one")
    if options.examples < 0:
        raise DataError(f"--examples {options.examples} has to be 0 or more")
    collection = collect(options.folders)
    text = {"title": options.title, "intro": options.intro}
    for output in outputs:
        if output.suffix == ".html":
            from lfvit.results.page import write_page  # needs the extra plots, as .md does

            media = {"artifacts": options.artifacts, "examples": options.examples}
            write_page(collection, output, **media, **text)
        elif output.suffix == ".md":
            from lfvit.results.report import write_report

            words = ["TEXT" if word == options.intro else word for word in arguments]
            command = without_paths(shlex.join(["lfvit", "report", *words]))
            write_report(collection, output, command=command, **text)
        else:
            write_table(collection, output, mean=options.mean)
    for path, reason in collection.skipped:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    runs, models = len(collection.runs), len({run.group for run in collection.runs})
    print(f"{runs} evaluations of {models} models, {len(collection.skipped)} left out")
    print(f"written to {', '.join(map(str, outputs))}")

"""Collect runs into one table or page: python -m lfvit.results DIR [DIR ...] --output FILE.

DIR is a run directory, a sweep directory, or any folder above them. The suffix of FILE decides:
.html is the report page, .md a page of Markdown, .csv and .parquet the tidy table.
"""

import argparse
import shlex
import sys
from pathlib import Path

from lfvit.errors import DataError, LFViTError
from lfvit.results.collect import Collection, collect, write_table
from lfvit.results.page import write_page
from lfvit.results.results import PageText, without_paths, write_results
from lfvit.utils.warning_filters import filter_warnings

SUFFIXES = (".html", ".md", ".csv", ".parquet")


def main() -> None:
    filter_warnings()
    arguments = _parse()
    try:
        for output in arguments.output:
            if output.suffix not in SUFFIXES:
                raise DataError(
                    f"--output {output}: unknown suffix {output.suffix!r}; valid: "
                    f"{', '.join(SUFFIXES)}"
                )
        for notes in arguments.notes:
            if not notes.is_file():
                raise DataError(f"--notes {notes}: no such file")
        found = collect(arguments.runs)
        for output in arguments.output:
            _write(found, output, arguments)
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for place, reason in found.skipped:
        print(f"left out: {place}: {reason}", file=sys.stderr)
    models = len({run.group for run in found.runs})
    print(f"{len(found.runs)} evaluations of {models} models, {len(found.skipped)} left out")
    print(f"written to {', '.join(map(str, arguments.output))}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lfvit.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR")
    parser.add_argument(
        "--output", type=Path, action="append", metavar="FILE", help="may be repeated"
    )
    parser.add_argument("--title", default="Results")
    parser.add_argument("--intro", default="", help="a paragraph under the title")
    parser.add_argument(
        "--mean",
        action="store_true",
        help="of .csv and .parquet: one row per model and operating point, over all seeds",
    )
    parser.add_argument(
        "--artifacts", type=Path, metavar="DIR", help="of .html: the folder of index.json"
    )
    parser.add_argument(
        "--examples", type=int, default=8, help="of .html: images to show; 0 for none"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="of .md: images of each kind to show, in images/ beside the page",
    )
    parser.add_argument(
        "--names",
        type=int,
        default=0,
        metavar="N",
        help="of .md: images of each kind to list by name, where they are not yours to show",
    )
    parser.add_argument(
        "--notes",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="of .md: a page of Markdown to take in with its pictures, such as that of an "
        "artifact; may be repeated",
    )
    arguments = parser.parse_args()
    arguments.output = arguments.output or [Path("results.md")]
    return arguments


def _write(found: Collection, output: Path, arguments: argparse.Namespace) -> None:
    if output.suffix == ".html":
        write_page(
            found,
            output,
            artifacts=arguments.artifacts,
            title=arguments.title,
            intro=arguments.intro,
            examples=arguments.examples,
        )
    elif output.suffix == ".md":
        words = ["TEXT" if word == arguments.intro else word for word in sys.argv[1:]]
        command = without_paths(shlex.join(["python", "-m", "lfvit.results", *words]))
        text = PageText(
            arguments.title,
            arguments.intro,
            arguments.notes,
            arguments.pictures,
            arguments.names,
            command,
        )
        write_results(found, text, output)
    else:
        write_table(found, output, mean=arguments.mean)


if __name__ == "__main__":
    main()

"""python -m lfvit.report RUN [RUN ...]: a page of results from run directories."""

import argparse
import sys
from pathlib import Path

from lfvit.errors import LFViTError
from lfvit.report.results import write_results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lfvit.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run directories; the last is the yardstick"
    )
    parser.add_argument("--title", default="Results")
    parser.add_argument("--intro", default="", help="a paragraph under the title")
    parser.add_argument("--output", type=Path, default=Path("results.md"))
    arguments = parser.parse_args()
    try:
        write_results(arguments.runs, arguments.title, arguments.intro, arguments.output)
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()

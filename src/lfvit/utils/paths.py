"""Where the project's files are, and how its commands are typed."""

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
INSTALLED = (PACKAGE / "conf").is_dir()  # from a wheel, which has the folders in the package
CONF, ZOO = ((PACKAGE if INSTALLED else CHECKOUT) / name for name in ("conf", "zoo"))


def program(command: str) -> str:
    """How a command is typed where this process was started: as a script, or ``lfvit COMMAND``."""
    return f"lfvit {command}" if _through_entry() else f"python {command}.py"


def typed() -> tuple[str, list[str]]:
    """The command of this process, and its arguments."""
    if _through_entry():
        return sys.argv[1], sys.argv[2:]
    return Path(sys.argv[0]).stem, sys.argv[1:]


def _through_entry() -> bool:
    start = Path(sys.argv[0])
    return len(sys.argv) > 1 and (start.stem == "lfvit" or start == PACKAGE / "__main__.py")

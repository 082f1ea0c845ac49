"""Files that are complete or not there, whatever happens while they are written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lfvit.errors import StorageError

PARTIAL = ".partial"
"""What the name of a file ends with until all of it is on disk."""


def write_atomic(path: Path, content: str | bytes | memoryview) -> None:
    """Write beside the file, sync, and rename over it: what was there stays until then.

    Raises:
        StorageError: a full disk, a missing right, a broken device. What was there is kept.
    """
    # names of files need not be UTF-8
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise StorageError(
            f"{path} cannot be written: {error.strerror} ({len(data) / 1e6:.1f} MB needed, "
            f"{free / 1e6:.1f} MB free); what was there before is kept. Make room, or check "
            "rights and quota, then run the command again"
        ) from error


def rename(partial: Path, path: Path) -> None:
    """Put a complete file in the place of another, so that it is there after a power cut too."""
    if path.is_dir():  # a sharded checkpoint
        shutil.rmtree(path)
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process has left; nobody else may be writing there."""
    for path in folder.glob(f"*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, see `write_atomic`."""
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The contents of a JSON file; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

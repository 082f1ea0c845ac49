"""Reads what W&B wrote into an offline run's .wandb file: its protobuf records in LevelDB's log."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def payloads(data: bytes) -> Iterator[bytes]:
    """Every record of the log, put together from its fragments."""
    assert data[:4] == b":W&B"
    position, parts = HEADER, []
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # too little for a header: zeros up to the next block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts.append(data[position + HEADER : position + HEADER + length])
        position += HEADER + length
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


class OfflineRun:
    """run: the RunRecord. config, summary: as they were in the end. history: the logged rows.
    exit_code: None while the run is not closed. media: the folder of pictures. staged: by name,
    the files of the last table logged under it, which wait for their upload."""

    def __init__(self, path: Path) -> None:
        self.media = path.parent / "files"
        self.staged: dict[str, dict[str, Path]] = {}
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        for payload in payloads(path.read_bytes()):
            record = Record.FromString(payload)
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self._update(self.config, record.run.config.update)
                case "config":
                    self._update(self.config, record.config.update)
                case "history":
                    row: dict[str, Any] = {}
                    self._update(row, record.history.item)
                    self.history.append(row)
                    self.summary.update(row)
                case "summary":
                    self._update(self.summary, record.summary.update)
                case "artifact" if record.artifact.type == "run_table":
                    files = {e.path: Path(e.local_path) for e in record.artifact.manifest.contents}
                    self.staged[record.artifact.name.split("-", 2)[2]] = files
                case "exit":
                    self.exit_code = record.exit.exit_code

    @staticmethod
    def _update(into: dict[str, Any], items: Any) -> None:
        for item in items:
            *parents, name = item.nested_key or [item.key]
            place = into
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = json.loads(item.value_json)

    def values(self, key: str) -> list[Any]:
        """A metric's values, in the order they were logged."""
        return [row[key] for row in self.history if key in row]

    def table(self, key: str) -> dict[str, Any]:
        """The last table logged under a name."""
        return json.loads(self.staged[key][f"{key}.table.json"].read_text())


def read_offline_run(run_dir: Path) -> OfflineRun:
    """The only W&B run below a run directory, once W&B's process has written its end."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    patience = time.monotonic() + 30
    while (found := OfflineRun(path)).exit_code is None and time.monotonic() < patience:
        time.sleep(0.1)
    return found

"""metrics.csv, which a resumed run goes on with."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lfvit.utils.atomic_io import write_atomic


class CSVLogger(loggers.CSVLogger):
    """Lightning's, except that a resumed run keeps the rows of the steps before its checkpoint.

    Rows of later steps, which are computed again, are dropped. A run that starts begins a new file.

    Args:
        save_dir: where metrics.csv lies.
        resumed_at: optimizer steps taken before the checkpoint; None for a run that starts.
        **settings: of Lightning's.
    """

    def __init__(self, save_dir: str, *, resumed_at: int | None = None, **settings: Any) -> None:
        super().__init__(save_dir, **settings)
        self.resumed_at = resumed_at

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir, self.resumed_at)
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, resumed_at: int | None) -> None:
        self.resumed_at = resumed_at
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """In the place of Lightning's, which deletes the file that is there."""
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        if self.resumed_at is None:
            path.unlink()
            return
        header, rows = _read(path)
        self.metrics_keys = header
        _write(path, header, [row for row in rows if int(row["step"]) < self.resumed_at])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path)[1])


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The header and the rows; one that was cut off by a power cut is left out."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values()]
        return list(reader.fieldnames or []), rows


def _write(path: Path, header: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=header)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())

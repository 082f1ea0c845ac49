"""Images per second of collected runs, from what benchmark.py and reproduce.py measured."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lfvit.results.old.evaluated import Run

INTERPOLATED = ", interpolated between measured shares of exits"


@dataclass(frozen=True)
class Speeds:
    """What one benchmark.json says about images per second, with the settings beside it."""

    content: dict[str, Any]
    config: dict[str, Any]

    def of(self, run: Run, point: Mapping[str, Any]) -> tuple[float, str] | None:
        """Images per second of an operating point, and how that is known; None if it is not.

        Time per image is linear in the share of images that exit, so that between two measured
        shares it is interpolated. Beyond them only the point's own threshold is known where it was
        timed, on images of which another share may exit.
        """
        share = point.get("exit_fraction") if run.two_pass else 0.0
        rows, setting = self._rows(run)
        if share is None or not rows:
            return None
        times = {float(row["exit_fraction"] or 0): 1 / row["images_per_second"] for row in rows}
        shares = sorted(times)
        if not shares[0] - 1e-9 <= share <= shares[-1] + 1e-9:
            threshold = point.get("threshold")
            asked = None if threshold is None else f"measured at eta={threshold:g}"
            row = next((row for row in rows if asked and row.get("exits") == asked), None)
            if row is None:
                return None
            early = f"on images of which {100 * row['exit_fraction']:.1f} % exit"
            return row["images_per_second"], f"{setting}, {self.machine}, {early}"
        speed = 1 / float(np.interp(share, shares, [times[s] for s in shares]))
        exact = min(abs(share - s) for s in shares) < 1e-6
        return speed, f"{setting}, {self.machine}{'' if exact else INTERPOLATED}"

    @property
    def machine(self) -> str:
        return str((self.content.get("environment") or {}).get("machine", "machine not recorded"))

    def _rows(self, run: Run) -> tuple[list[dict[str, Any]], str]:
        """The rows about the model of this run, all in one setting: the largest batch."""

        def setting(row: Mapping[str, Any]) -> tuple[Any, ...]:
            return row["batch_size"], row.get("precision", "fp32"), bool(row.get("compiled"))

        rows = [
            row
            for row in self.content["rows"]
            if row.get("task", "inference") == "inference" and self._same_model(run, row)
        ]
        best = max((setting(row) for row in rows), default=None)
        if best is None:
            return [], ""
        batch, precision, compiled = best
        text = f"batch {batch}, {precision}{', compiled' if compiled else ''}"
        return [row for row in rows if setting(row) == best], text

    def _same_model(self, run: Run, row: Mapping[str, Any]) -> bool:
        """Whether a row is about this run's weights, or about a random model of the same cost.

        The same method, reducer and MACs, and backbone and image size where no checkpoint is
        stated; the number of classes may change the MACs of a random model by a percent. Trained
        weights need not state their reducer: MACs tell it from another one.
        """
        stated = dict(json.loads(row["settings"]))
        checkpoint, reducer = stated.pop("ckpt_path", None), stated.pop("reducer", None)
        if reducer is None:
            reducer = {"name": "none"} if checkpoint is None else {}
        reducer = reducer if isinstance(reducer, Mapping) else {"name": reducer}
        own_reducer = run.evaluation.get("reducer") or {"name": "none"}
        own = run.evaluation["method"]
        same = self._same_size(run) if checkpoint is None else _same_file(checkpoint, run)
        if not same:
            return False
        if any(own.get(key) != value for key, value in stated.items() if value is not None):
            return False
        if any(own_reducer.get(k) != v for k, v in reducer.items() if v is not None):
            return False
        ends = [
            run.evaluation[name]["gmacs"] for name in ("first", "second") if run.evaluation[name]
        ]
        share = float(row["exit_fraction"] or 0)
        cost = ends[0] + (1 - share) * (ends[-1] - ends[0])
        return abs(row["gmacs"] / cost - 1) < 0.01

    def _same_size(self, run: Run) -> bool:
        """Whether random models had this run's backbone and image size: their own, or a file's."""
        checkpoint = self.config.get("ckpt_path")
        if checkpoint is not None:
            return _same_file(checkpoint, run)
        keys = ("backbone", "image_size")
        return all(self.config.get(k, run.evaluation.get(k)) == run.evaluation.get(k) for k in keys)


def _same_file(checkpoint: str, run: Run) -> bool:
    return os.path.realpath(str(checkpoint)) == os.path.realpath(run.evaluation["checkpoint"])

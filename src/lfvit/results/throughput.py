"""Images per second of evaluated runs, from what benchmark.py measured."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from lfvit.results.collect import Run

SETTING = ["batch_size", "precision", "compiled"]


@dataclass(frozen=True)
class Throughput:
    """The content of a benchmark.json."""

    content: dict[str, Any]

    def of(self, run: "Run", exit_fraction: float | None) -> tuple[float, str] | None:
        """Images per second at a share of early exits, and how they are known; None if not.

        Of the largest batch. Time per image is linear in the share of images that exit, so it is
        interpolated between two measured shares, and unknown beyond them.
        """
        same = [row for row in self.content["rows"] if _is_about(row, run)]
        if exit_fraction is None or not same:
            return None
        rows = pd.DataFrame([{"precision": "fp32", "compiled": False, **row} for row in same])
        rows = rows.merge(rows[SETTING].sort_values(SETTING).tail(1), on=SETTING)
        rows = rows.fillna({"exit_fraction": 0.0}).sort_values("exit_fraction")
        shares = rows["exit_fraction"].to_numpy(dtype=float)
        if not shares[0] - 1e-9 <= exit_fraction <= shares[-1] + 1e-9:
            return None
        seconds = float(np.interp(exit_fraction, shares, 1 / rows["images_per_second"]))
        batch, precision, compiled = rows[SETTING].iloc[0]
        machine = (self.content.get("environment") or {}).get("machine")
        source = f"batch {batch}, {precision}{', compiled' if compiled else ''}, {machine}"
        exact = np.abs(exit_fraction - shares).min() < 1e-6
        return 1 / seconds, source + ("" if exact else ", interpolated between shares of exits")


def _is_about(row: Mapping[str, Any], run: "Run") -> bool:
    """Whether a row is about this run's weights, or about a random model of the same speed.

    That is the same method at the same cost, within a percent: the number of classes may differ.
    """
    settings = dict(json.loads(row["settings"]))
    first, last = run.evaluation.passes[0].gmacs, run.evaluation.passes[-1].gmacs
    cost = last - (row.get("exit_fraction") or 0) * (last - first)
    checkpoint = settings.get("ckpt_path") or run.evaluation.checkpoint
    return (
        row.get("task", "inference") == "inference"
        and settings.get("name") == run.evaluation.method["name"]
        and abs(row["gmacs"] / cost - 1) < 0.01
        and os.path.realpath(str(checkpoint)) == os.path.realpath(run.evaluation.checkpoint)
    )

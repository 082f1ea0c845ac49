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

INTERPOLATED = ", interpolated between measured shares of exits"


@dataclass(frozen=True)
class Throughput:
    """The content of a benchmark.json, and the config of the command that wrote it."""

    content: dict[str, Any]
    config: dict[str, Any]

    def of(self, run: "Run", exit_fraction: float | None) -> tuple[float, str] | None:
        """Images per second at a share of early exits, and how they are known; None if not.

        Time per image is linear in the share of images that exit, so it is interpolated between
        two measured shares, and unknown beyond them.
        """
        rows = self._rows(run)
        if exit_fraction is None or rows.empty:
            return None
        shares = rows["exit_fraction"].to_numpy()
        if not shares[0] - 1e-9 <= exit_fraction <= shares[-1] + 1e-9:
            return None
        seconds = float(np.interp(exit_fraction, shares, 1 / rows["images_per_second"]))
        first = rows.iloc[0]
        source = f"batch {first['batch_size']}, {first['precision']}"
        source += f"{', compiled' if first['compiled'] else ''}, {self._machine()}"
        exact = np.abs(exit_fraction - shares).min() < 1e-6
        return 1 / seconds, source if exact else source + INTERPOLATED

    def _machine(self) -> str:
        return str((self.content.get("environment") or {}).get("machine") or "machine unknown")

    def _rows(self, run: "Run") -> pd.DataFrame:
        """The rows about the model of this run in the setting of the largest batch, by share."""
        same = [row for row in self.content["rows"] if self._is_about(row, run)]
        names = ["batch_size", "precision", "compiled"]
        columns = [*names, "exit_fraction", "images_per_second"]
        rows = pd.DataFrame(same, columns=columns)
        rows["precision"] = rows["precision"].astype(object).fillna("fp32")
        rows["compiled"] = rows["compiled"].eq(True)
        rows["exit_fraction"] = rows["exit_fraction"].astype(float).fillna(0.0)
        best = rows[names].sort_values(names).tail(1)
        return rows.merge(best, on=names).sort_values("exit_fraction")

    def _is_about(self, row: Mapping[str, Any], run: "Run") -> bool:
        """Whether a row is about this run's weights, or about a random model of the same cost.

        The same method, reducer and MACs, and backbone and image size where no checkpoint is named.
        The number of classes may change the MACs of a random model by a percent.
        """
        evaluation = run.evaluation
        try:
            stated = dict(json.loads(row["settings"]))
        except (TypeError, ValueError, RecursionError):
            return False
        checkpoint = stated.pop("ckpt_path", None)
        trained = checkpoint is not None
        checkpoint = checkpoint or self.config.get("ckpt_path")
        # rows of trained weights may leave the reducer out: MACs tell it from another one
        reducer = stated.pop("reducer", None) or ({} if trained else {"name": "none"})
        reducer = reducer if isinstance(reducer, Mapping) else {"name": reducer}
        if checkpoint is not None:
            same = os.path.realpath(str(checkpoint)) == os.path.realpath(evaluation.checkpoint)
        else:
            known = {"backbone": evaluation.backbone, "image_size": evaluation.image_size}
            same = all(self.config.get(key, value) == value for key, value in known.items())
        first, last = evaluation.passes[0].gmacs, evaluation.passes[-1].gmacs
        cost = last - (row.get("exit_fraction") or 0) * (last - first)
        return (
            same
            and row.get("task", "inference") == "inference"
            and _agrees(stated, evaluation.method)
            and _agrees(reducer, {"name": "none", **evaluation.reducer})
            and abs(row["gmacs"] / cost - 1) < 0.01
        )


def _agrees(stated: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether all stated settings but null ones are the known ones."""
    return all(value is None or known.get(key) == value for key, value in stated.items())

"""Ending a training from inside, at a stated moment, and comparing two runs bit by bit."""

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch


class SignalAt(L.Callback):
    """Sends this process a signal when it starts a batch (or validates), counted over the run.

    Args:
        signum: which.
        batch: the number of the batch, from 0, or of the validation batch.
        once: a file that is made at that moment; where it exists, nothing happens any more.
        hook: "train" or "validation".
        rank: of the process that gets it.
    """

    def __init__(
        self, signum: int, batch: int, once: str, hook: str = "train", rank: int = 0
    ) -> None:
        self.signum, self.batch, self.once = signum, batch, Path(once)
        self.hook, self.rank, self.seen = hook, rank, -1

    def _count(self, hook: str, trainer: L.Trainer) -> None:
        if hook != self.hook or trainer.sanity_checking or trainer.global_rank != self.rank:
            return
        self.seen += 1
        if self.seen == self.batch and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), self.signum)
            if self.signum == signal.SIGKILL:
                time.sleep(60)

    def on_train_batch_start(self, trainer, *_):
        self._count("train", trainer)

    def on_validation_batch_start(self, trainer, *_):
        self._count("validation", trainer)


def signal_at(signum: int, batch: int, once: Path, hook: str = "train", rank: int = 0) -> list[str]:
    """The overrides that add a `SignalAt` to a training."""
    return [
        "callbacks.signal._target_=interruptions.SignalAt",
        f"callbacks.signal.signum={int(signum)}",
        f"callbacks.signal.batch={batch}",
        f"callbacks.signal.once={once}",
        f"callbacks.signal.hook={hook}",
        f"callbacks.signal.rank={rank}",
    ]


TIMES = ("train/images_per_second", "images_per_second", "train_seconds")


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs ended differently: weights, averages, optimizer, schedule, progress, metrics.

    Times, the place of the run and the commit are left out.
    """
    checkpoints = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    )
    found = list(_differing(*(_comparable(content) for content in checkpoints), "last.ckpt"))
    rows = [_rows(run / "metrics.csv") for run in (one, other)]
    if rows[0] != rows[1]:
        differing = [pair for pair in zip(*rows, strict=False) if pair[0] != pair[1]]
        found.append(f"metrics.csv: {len(rows[0])}, {len(rows[1])} rows; {differing[:1]}")
    ends = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    for end in ends:
        for name in (*TIMES, "commit"):
            end.pop(name, None)
    return [*found, *_differing(*ends, "metrics.json")]


def _comparable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in checkpoint.items() if key not in ("callbacks", "progress")}
    kept["lfvit"] = {k: v for k, v in kept["lfvit"].items() if k not in ("tracking", "commit")}
    best = next(v for k, v in checkpoint["callbacks"].items() if k.startswith("ModelCheckpoint"))
    return {**kept, "best": best["best_model_score"]}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        rows = [
            {k: v for k, v in row.items() if v and k not in TIMES} for row in csv.DictReader(file)
        ]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def _differing(one: Any, other: Any, place: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differing(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from _differing(*pair, f"{place}/{i}")
    elif isinstance(one, torch.Tensor):
        if not torch.equal(one, other):
            yield place
    elif one != other:
        yield f"{place}: {one}, {other}"

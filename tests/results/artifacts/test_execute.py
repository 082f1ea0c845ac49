"""Runs in processes of their own."""

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import waiting
from rich.console import Console

from lfvit.results.artifacts import execute
from lfvit.utils.signals import Stopped


def test_a_signal_stops_what_runs_and_starts_nothing_else(monkeypatch, tmp_path):
    """Three runs, two at a time."""
    monkeypatch.setattr(execute, "_work", waiting.work)
    runs = [
        SimpleNamespace(name=str(i), seed=0, start=None, folder=tmp_path / str(i)) for i in range(3)
    ]
    for run in runs:
        run.folder.mkdir()

    def send():
        while len([*tmp_path.glob("*/started")]) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped, match="SIGTERM"):
        execute.run_all(runs, {}, fresh=False, jobs=2, console=Console(quiet=True))
    assert [sorted(p.name for p in run.folder.iterdir()) for run in runs] == [
        ["started", "told"],
        ["started", "told"],
        [],
    ]


def test_what_can_begin_overtakes_what_waits_for_its_start(monkeypatch, tmp_path):
    """The second run starts from the first, which ends only when the third is under way."""
    monkeypatch.setattr(execute, "_work", waiting.meet)
    order = []
    for name, start, meets in [("a", None, "c"), ("b", "a/seed0", "a"), ("c", None, "a")]:
        folder = tmp_path / name
        folder.mkdir()
        order.append(
            SimpleNamespace(
                name=name,
                seed=0,
                start=start,
                folder=folder,
                result=folder / "evaluate.json",
                meets=meets,
            )
        )
    runs = {f"{run.name}/seed0": run for run in order}
    results = execute.run_all(order, runs, fresh=False, jobs=2, console=Console(quiet=True))
    assert results == {run.folder: {"met": True} for run in order}
    assert list(results) == [run.folder for run in order]

"""Damaged run folders: one is listed with its reason, or shown, and the others are kept."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml
from fuzzing import edited, edits, fuzz, places_of, replaced, values
from hypothesis import strategies as st

from lfvit.results.collect import collect
from lfvit.results.page import write_page
from lfvit.results.report import write_report
from lfvit.results.table import write_table
from lfvit.utils.atomic_io import write_json

FILES = (
    *("run.json", "metrics.json", "environment.json", "config.yaml", "job.json", "benchmark.json"),
    *("evaluation/evaluate.json", "evaluation/config.yaml", "evaluation/predictions.parquet"),
)
COLUMNS = ("image", "target", "prediction_1", "confidence_1", "prediction_2")
CHANGES = {
    "drop": lambda column: None,
    "words": lambda column: column.astype(str),
    "halves": lambda column: column.where(column.index % 2 == 0) if len(column) else column,
    "negative": lambda column: column if column.dtype.kind not in "if" else -1 - column,
    "large": lambda column: column if column.dtype.kind not in "if" else column + 10**9,
    "nan": lambda column: np.full(len(column), math.nan),
    "same": lambda column: [column.iloc[0]] * len(column),
    "lists": lambda column: [[value] for value in column],
}
"""What may become of a column of predictions.parquet."""


@pytest.fixture(scope="module")
def folders(trained_run, composed, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Two seeds of a two-pass model, damaged and whole, and a one-pass model, as runs leave them.

    With the bytes of each file of the run that gets damaged.
    """
    from lfvit.commands.evaluate import evaluate

    root = tmp_path_factory.mktemp("runs")
    for name in ("damaged", "seed_1"):
        ignored = shutil.ignore_patterns("checkpoints")
        shutil.copytree(trained_run, root / name, ignore=ignored)
    evaluation = evaluate(
        composed(
            "evaluate",
            f"ckpt_path={trained_run / 'checkpoints' / 'last.ckpt'}",
            *("data.num_workers=0", "trainer.accelerator=cpu"),
            f"run_dir={root / 'damaged' / 'evaluation'}",
        )
    )
    write_json(root / "damaged" / "job.json", {"status": "trained", "evaluation": "evaluation"})
    row = {"model": "lf_vit", "settings": json.dumps({"name": "lf_vit"}), "batch_size": 4}
    row |= {"images_per_second": 9.5, "gmacs": evaluation.passes[-1].gmacs, "exit_fraction": 0.0}
    write_json(root / "damaged" / "benchmark.json", {"rows": [row]})
    for name in ("seed_1", "vit"):
        shutil.copytree(root / "damaged" / "evaluation", root / name / "evaluation")
    config = root / "seed_1" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    _as_one_pass(root / "vit" / "evaluation")
    return root, {name: (root / "damaged" / name).read_bytes() for name in FILES}


def _as_one_pass(folder: Path) -> None:
    """What evaluate.py would write of a model with one pass that predicts like the last."""
    found = json.loads((folder / "evaluate.json").read_text())
    last = {**found["operating_points"][1], "rule": "pass 1"}
    found |= {"method": {"name": "vit"}, "passes": found["passes"][1:], "curve": []}
    found |= {"operating_points": [last], "localisation": None, "temperature": None}
    write_json(folder / "evaluate.json", found)
    rows = pd.read_parquet(folder / "predictions.parquet")
    rows = rows.drop(columns=["prediction_1", "confidence_1"])
    rows.columns = ["image", "target", "prediction_1", "confidence_1"]
    rows.to_parquet(folder / "predictions.parquet")


def changed(name: str, content: bytes, place: int, value: Any, change: tuple[str, str]) -> bytes:
    """A file with another value in one place, or without it."""
    if name.endswith(".parquet"):
        return _other_column(content, *change)
    text = content.decode()
    known = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    places = places_of(known)
    known = replaced(known, places[place % len(places)], value)
    return (json.dumps(known) if name.endswith(".json") else yaml.safe_dump(known)).encode()


def _other_column(content: bytes, column: str, change: str) -> bytes:
    rows = pd.read_parquet(io.BytesIO(content))
    became = CHANGES[change](rows[column])
    rows = rows.drop(columns=column) if became is None else rows.assign(**{column: became})
    file = io.BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


DAMAGE = st.tuples(
    st.sampled_from(FILES),
    st.integers(0, 10**4),
    st.one_of(st.just(places_of), values()),
    st.tuples(st.sampled_from(COLUMNS), st.sampled_from(sorted(CHANGES))),
    st.one_of(st.just([]), edits()),
)


@pytest.mark.filterwarnings("ignore")  # of matplotlib, about letters that its font lacks
@fuzz(
    6,
    damages=st.lists(DAMAGE, min_size=1, max_size=3),
    writer=st.sampled_from(["page", "results", "tables"]),
)
def test_a_damaged_folder_is_listed_or_shown(folders, tmp_path_factory, damages, writer):
    root, whole = folders
    try:
        for name, place, value, change, bytes_too in damages:
            content = changed(name, whole[name], place, value, change)
            (root / "damaged" / name).write_bytes(edited(content, bytes_too))
        found = collect([root])
        _write(writer, root, tmp_path_factory.getbasetemp() / "fuzzed")
    finally:
        for name in FILES:
            (root / "damaged" / name).write_bytes(whole[name])
    shown = {run.path.removeprefix(f"{root.name}/") for run in found.runs}
    assert {"seed_1/evaluation", "vit/evaluation"} <= shown
    if "damaged/evaluation" not in shown:
        assert any(path == f"{root.name}/damaged/evaluation" for path, _ in found.skipped)
    assert all(reason.strip() and len(reason) < 1000 for _, reason in found.skipped)


def _write(writer: str, root: Path, folder: Path) -> None:
    found = collect([root])
    if writer == "page":
        # the JavaScript engine that draws the chart reserves more than an example may take
        with mock.patch("lfvit.results.page.render_chart", return_value=("", "")):
            write_page([root], folder / "page.html", examples=0)
    elif writer == "results":
        write_report(found, folder / "page.md")
    else:
        for name, mean in (("runs.csv", False), ("runs.parquet", False), ("mean.csv", True)):
            write_table(found, folder / name, mean=mean)

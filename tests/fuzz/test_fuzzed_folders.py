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

from lfvit.commands.evaluate import evaluate
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
CHANGES = {  # what may become of a column of predictions.parquet
    "drop": lambda column: None,
    "words": lambda column: column.astype(str),
    "negative": lambda column: column if column.dtype.kind not in "if" else -1 - column,
    "large": lambda column: column if column.dtype.kind not in "if" else column + 10**9,
    "nan": lambda column: np.full(len(column), math.nan),
    "lists": lambda column: [[value] for value in column],
}


@pytest.fixture(scope="module")
def folders(trained_run, composed, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Two seeds of a model, the first to be damaged, with the bytes of each file of it."""
    root = tmp_path_factory.mktemp("runs")
    damaged, whole = root / "damaged", root / "seed_1"
    for folder in (damaged, whole):
        shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    settings = ("data.num_workers=0", "trainer.accelerator=cpu")
    weights = f"ckpt_path={trained_run / 'checkpoints' / 'last.ckpt'}"
    evaluation = evaluate(
        composed("evaluate", weights, *settings, f"run_dir={damaged / 'evaluation'}")
    )
    write_json(damaged / "job.json", {"status": "trained", "evaluation": "evaluation"})
    row = {"model": "lf_vit", "settings": json.dumps({"name": "lf_vit"}), "batch_size": 4}
    row |= {"images_per_second": 9.5, "gmacs": evaluation.passes[-1].gmacs, "exit_fraction": 0.0}
    write_json(damaged / "benchmark.json", {"rows": [row]})
    shutil.copytree(damaged / "evaluation", whole / "evaluation")
    config = whole / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    return root, {name: (damaged / name).read_bytes() for name in FILES}


def changed(name: str, content: bytes, place: int, value: Any, change: tuple[str, str]) -> bytes:
    """A file with another value in one place, or without it."""
    if name.endswith(".parquet"):
        column, kind = change
        rows = pd.read_parquet(io.BytesIO(content))
        became = CHANGES[kind](rows[column])
        rows = rows.drop(columns=column) if became is None else rows.assign(**{column: became})
        file = io.BytesIO()
        rows.to_parquet(file)
        return file.getvalue()
    known = yaml.safe_load(content)  # JSON is YAML
    places = places_of(known)
    known = replaced(known, places[place % len(places)], value)
    return (json.dumps(known) if name.endswith(".json") else yaml.safe_dump(known)).encode()


DAMAGE = st.tuples(
    st.sampled_from(FILES),
    st.integers(0, 10**4),
    st.one_of(st.just(places_of), values()),
    st.tuples(st.sampled_from(COLUMNS), st.sampled_from(sorted(CHANGES))),
    st.one_of(st.just([]), edits()),
)


@pytest.mark.filterwarnings("ignore")  # of matplotlib, about letters that its font lacks
@fuzz(
    4,
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
        write(writer, root, tmp_path_factory.getbasetemp() / "fuzzed")
    finally:
        for name in FILES:
            (root / "damaged" / name).write_bytes(whole[name])
    shown = {run.path.removeprefix(f"{root.name}/") for run in found.runs}
    assert "seed_1/evaluation" in shown
    if "damaged/evaluation" not in shown:
        assert any(path == f"{root.name}/damaged/evaluation" for path, _ in found.skipped)
    assert all(reason.strip() and len(reason) < 1000 for _, reason in found.skipped)


def write(writer: str, root: Path, folder: Path) -> None:
    if writer == "page":
        # the JavaScript engine that draws the chart reserves more than an example may take
        with mock.patch("lfvit.results.page.render_charts", return_value=("", [""])):
            write_page([root], folder / "page.html", examples=0)
    elif writer == "results":
        write_report(collect([root]), folder / "page.md")
    else:
        for name, mean in (("runs.csv", False), ("runs.parquet", False), ("mean.csv", True)):
            write_table(collect([root]), folder / name, mean=mean)

"""A report page about synthetic runs, and one with examples of real models.

One class has a name that no page may take for HTML.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from synthetic import make_runs

from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.data import needle
from lfvit.results.page import write_page
from lfvit.runs.models import build_model
from lfvit.runs.record import make_record
from small_vits import randomise

NASTY = "</script><img src=x onerror=alert(1)>"


@contextmanager
def nasty_patterns() -> Iterator[None]:
    """Generated images whose first class has that name."""
    patterns = list(needle.PATTERNS.values())
    names = [NASTY, *list(needle.PATTERNS)[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needle, "PATTERNS", dict(zip(names, patterns, strict=True)))
        yield


@pytest.fixture(scope="session")
def nasty() -> str:
    return NASTY


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder of four runs without checkpoints: lf_0, lf_1, cf_0 and vit_0."""
    return make_runs(tmp_path_factory.mktemp("runs"))


def write_artifacts(folder: Path) -> Path:
    """A table, a figure and one that is broken."""
    columns = [
        {"key": "model", "title": "model", "unit": None, "digits": 0},
        {"key": "eta", "title": "eta", "unit": None, "digits": 2},
        {"key": "top1", "title": "top-1", "unit": "%", "digits": 2},
    ]
    table = {"title": "A table", "kind": "table", "columns": columns}
    table["rows"] = [{"model": "LF-ViT", "eta": None, "top1": 80.1273}]
    figure = {"title": "A figure", "kind": "figure", "columns": [], "rows": []}
    for name, content in (("table", table), ("figure", figure)):
        (folder / name).mkdir(parents=True)
        label = {"label": "A label that states what it proves."}
        (folder / name / "artifact.json").write_text(json.dumps(content | label))
    (folder / "figure" / "figure.png").write_bytes(b"\x89PNG")
    (folder / "broken").mkdir()
    (folder / "broken" / "artifact.json").write_text("{")
    (folder / "index.json").write_text(json.dumps(["table", "figure", "broken"]))
    return folder


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory) -> Path:
    """The report page about the synthetic runs, with artifacts."""
    folder = tmp_path_factory.mktemp("page")
    output = folder / "report.html"
    artifacts = write_artifacts(folder / "artifacts")
    write_page([runs], output, artifacts=artifacts, title="A report", examples=0)
    return output


@pytest.fixture(scope="session")
def page_with_examples(composed, tmp_path_factory) -> Path:
    """The report page about two real models with random weights."""
    root = tmp_path_factory.mktemp("evaluated")
    with nasty_patterns():
        for method in ("lf_vit", "cf_vit"):
            run = root / method
            cfg = composed("train", *NEEDLE_FAST, f"method={method}", f"run_dir={run}")
            classes = list(needle.PATTERNS)[:6]
            model = build_model(cfg, len(classes))
            randomise(model, seed=1)
            (run / "checkpoints").mkdir(parents=True)
            path = run / "checkpoints" / "last.ckpt"
            torch.save({"model": model.state_dict(), "lfvit": make_record(cfg, classes)}, path)
            fast = ("data.num_workers=0", "trainer.accelerator=cpu", f"ckpt_path={path}")
            evaluate(composed("evaluate", *fast, f"run_dir={run / 'evaluation'}", "threshold=0.4"))
        write_page([root], root / "report.html")
    return root / "report.html"

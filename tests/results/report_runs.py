"""Runs of tiny models for the report: two seeds of LF-ViT, CF-ViT and a ViT, on generated images.

One class is called what nobody should call a class, so that every page of these tests escapes it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.data import needle
from lfvit.results.page import write_page

NASTY = "</script><img src=x onerror=alert(1)>"


@contextmanager
def nasty_patterns() -> Iterator[None]:
    """Generated images whose first class has that name, for as long as they are needed."""
    patterns = list(needle.PATTERNS.values())
    names = [NASTY, *list(needle.PATTERNS)[1:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needle, "PATTERNS", dict(zip(names, patterns, strict=True)))
        yield


@pytest.fixture(scope="session")
def nasty_class() -> str:
    return NASTY


@pytest.fixture(scope="session")
def runs(composed, tmp_path_factory) -> Path:
    """A folder of four evaluated runs: lf_0, lf_1, cf_0 and vit_0."""
    root = tmp_path_factory.mktemp("runs")
    with nasty_patterns():
        _make_runs(composed, root)
    return root


def _make_runs(composed, root: Path) -> None:
    for name, method in (("lf", "lf_vit"), ("cf", "cf_vit"), ("vit", "vit")):
        for seed in (0, 1) if name == "lf" else (0,):
            run_dir = root / f"{name}_{seed}"
            settings = (f"method={method}", f"seed={seed}", "trainer.max_epochs=1")
            train(composed("train", *NEEDLE_FAST, *settings, f"run_dir={run_dir}"))
            evaluate(
                composed(
                    "evaluate",
                    f"ckpt_path={run_dir / 'checkpoints' / 'last.ckpt'}",
                    "data.num_workers=0",
                    "trainer.accelerator=cpu",
                    "max_gmacs=0.009",
                    f"run_dir={run_dir / 'evaluation'}",
                )
            )


def write_artifacts(folder: Path) -> Path:
    """A table, a figure and one that is broken."""
    about = {
        "paper": "LF-ViT, Table 2",
        "scale": "tiny",
        "label": "A label that says what it proves.",
    }
    columns = [
        {"key": "model", "title": "model", "unit": None, "digits": None},
        {"key": "eta", "title": "eta", "unit": None, "digits": 2},
        {"key": "top1", "title": "top-1", "unit": "%", "digits": 2},
        {"key": "paper", "title": "paper", "unit": "%", "digits": 1},
    ]
    row = {"model": "LF-ViT", "eta": None, "top1": 80.1273, "paper": 80.5}
    table = {
        "name": "table",
        "title": "A table",
        "kind": "table",
        "columns": columns,
        "rows": [row],
    }
    figure = {"name": "figure", "title": "A figure", "kind": "figure", "columns": [], "rows": []}
    for content in (table, figure):
        place = folder / content["name"]
        place.mkdir(parents=True)
        (place / "artifact.json").write_text(json.dumps(content | about))
    (folder / "figure" / "figure.png").write_bytes(b"\x89PNG")
    (folder / "broken").mkdir()
    (folder / "broken" / "artifact.json").write_text("{")
    (folder / "index.json").write_text(json.dumps(["table", "figure", "broken"]))
    return folder


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory) -> Path:
    """The report page about these runs, with artifacts."""
    folder = tmp_path_factory.mktemp("page")
    output = folder / "report.html"
    artifacts = write_artifacts(folder / "artifacts")
    with nasty_patterns():
        write_page([runs], output, artifacts=artifacts, title="A report")
    return output


@pytest.fixture(scope="session")
def page_text(page) -> str:
    return page.read_text()

"""The cells of docs/tutorial.ipynb run one after the other, at small size."""

import json

from conftest import ROOT
from test_docs import SMALL_FOLDER

NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
SMALL = (*SMALL_FOLDER, "schedule.layer_decay=1")  # from random weights


def test_the_cells_run_one_after_the_other(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    scope: dict = {}
    cells = [c for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
        if number == 0:  # a folder that is there, and a model that need not be fetched
            assert scope["SETTINGS"][0] == "experiment=finetune"
            scope |= {"DATA": photographs, "SETTINGS": [*scope["SETTINGS"][:1], *SMALL]}
    run = scope["RUN"]
    assert run == tmp_path / "outputs" / "tutorial"
    assert {"config.json", "model.safetensors", "README.md"} == {
        path.name for path in (run / "model").iterdir()
    }
    assert (run / "look" / scope["answer"]["picture"]).stat().st_size > 1000
    assert scope["output"].logits.shape == (1, 3)
    assert len(scope["curve"]) > 10

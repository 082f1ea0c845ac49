"""The results page, from run directories to Markdown."""

import subprocess
import sys

import pytest

from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.errors import DataError
from lfvit.report.results import load_run, write_results


@pytest.fixture(scope="module")
def runs(composed, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for method in ("lf_vit", "vit"):
        train(composed("train", *NEEDLE_FAST, f"method={method}", f"run_dir={root / method}"))
        checkpoint = root / method / "checkpoints" / "last.ckpt"
        evaluate(
            composed(
                "evaluate",
                f"ckpt_path={checkpoint}",
                "data.num_workers=0",
                f"run_dir={root / method / 'evaluation'}",
            )
        )
    return [root / "lf_vit", root / "vit"]


def test_every_figure_on_the_page_comes_from_the_files(runs, tmp_path):
    page = tmp_path / "page.md"
    write_results(runs, "A title", "An introduction.", page)
    text = page.read_text()
    assert text.startswith("# A title\n\nAn introduction.")
    two_pass, one_pass = map(load_run, runs)
    for point in (
        two_pass.evaluation["first"],
        two_pass.evaluation["second"],
        two_pass.evaluation["calibrated"],
        one_pass.evaluation["first"],
    ):
        assert f"{point['top1']:.2f} | {point['gmacs']:.4f}" in text
    assert f"commit {two_pass.environment['commit']}" in text
    assert "| vit | one pass |" in text
    assert "](page_accuracy_vs_gmacs.png)" in text
    assert (tmp_path / "page_accuracy_vs_gmacs.png").stat().st_size > 5000
    assert str(tmp_path.parent) not in text


def test_folders_of_this_machine_do_not_reach_the_page():
    from lfvit.report.results import _without_paths

    command = "python train.py experiment=x data.root=/home/me/photos method=vit"
    assert _without_paths(command) == "python train.py experiment=x data.root=DIR method=vit"


def test_the_command_line(runs, tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "lfvit.report", *map(str, runs), "--output", str(page)]
    subprocess.run(command, check=True)
    assert page.exists()
    done = subprocess.run([*command[:3], str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no metrics.json, which is written by train.py" in done.stderr


def test_an_unevaluated_run_says_what_to_do(trained_run):
    with pytest.raises(DataError, match=r"holds no evaluate\.json.*python evaluate\.py ckpt_path="):
        load_run(trained_run)

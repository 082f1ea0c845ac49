"""The Markdown page of results, and the command line."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from lfvit.errors import DataError
from lfvit.report.__main__ import main
from lfvit.report.collect import collect
from lfvit.report.results import without_paths, write_results

pytest_plugins = ("report_runs",)


def test_every_figure_on_the_page_comes_from_the_files(runs, tmp_path):
    page = tmp_path / "page.md"
    found = collect([runs / "lf_0", runs / "vit_0"])
    write_results(found, "A title", "An introduction.", page)
    text = page.read_text()
    assert text.startswith("# A title\n\nAn introduction.")
    two_pass, one_pass = (run.evaluation for run in found.runs)
    for point in (two_pass["first"], two_pass["second"], one_pass["first"]):
        assert f"{point['top1']:.2f} | {point['gmacs']:.4f}" in text
    rules = two_pass["calibration"]["rules"]
    certificates = two_pass["calibration"]["risk"]["certificates"]
    assert len(rules) == 2
    for choice in (*rules, *certificates):
        point = choice["reported"]
        if point is None:
            assert choice["outcome"] in text
        else:
            exits = 100 * point["exit_fraction"]
            assert f"{point['top1']:.2f} " in text
            assert f"| {exits:.1f} | {point['gmacs']:.4f} |" in text
    for point in two_pass["curve"][::10]:
        risk = f"{100 * point['consistency']:.2f} | {100 * point['gap']:.2f} |"
        assert f"| {point['threshold']:.2f} | {point['top1']:.2f} |" in text
        assert risk in text
    assert f"commit {found.runs[0].environment['commit']}" in text
    assert "| ViT | one pass |" in text
    assert "](page_accuracy_vs_gmacs.png)" in text
    assert (tmp_path / "page_accuracy_vs_gmacs.png").stat().st_size > 5000
    assert str(runs.parent) not in text


def test_seeds_are_averaged_in_a_table_of_their_own(runs, tmp_path):
    page = tmp_path / "page.md"
    write_results(collect([runs]), "Results", "", page)
    tops = [
        json.loads((runs / name / "evaluation" / "evaluate.json").read_text())["second"]["top1"]
        for name in ("lf_0", "lf_1")
    ]
    values = pd.Series(tops)
    row = f"| LF-ViT | both passes | 2 | {values.mean():.2f} ± {values.std():.2f} |"
    assert row in page.read_text()
    assert "nan" not in page.read_text()


def test_folders_of_this_machine_do_not_reach_the_page():
    command = "python train.py experiment=x data.root=/home/me/photos method=vit /data/other"
    assert without_paths(command) == "python train.py experiment=x data.root=DIR method=vit DIR"


def test_the_command_line(runs, tmp_path, monkeypatch, capsys):
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("md", "csv", "parquet")]
    options = [text for path in outputs for text in ("--output", str(path))]
    monkeypatch.setattr(sys, "argv", ["report", str(runs / "lf_0"), str(runs / "vit_0"), *options])
    main()
    assert "2 evaluations of 2 models, 0 left out" in capsys.readouterr().out
    assert all(path.exists() for path in outputs)
    monkeypatch.setattr(sys, "argv", ["report", str(runs), "--output", "page.pdf"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert re.search(r"unknown suffix '\.pdf'; valid: \.html, \.md, \.csv", error)


def test_nothing_to_report(tmp_path):
    command = [sys.executable, "-m", "lfvit.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no evaluated run: evaluate.py writes what is collected here" in done.stderr


def test_an_unevaluated_run_says_what_to_do(runs, tmp_path):
    shutil.copytree(runs / "vit_0", tmp_path / "vit")
    shutil.rmtree(tmp_path / "vit" / "evaluation")
    with pytest.raises(DataError, match=r"vit: not evaluated: python evaluate\.py ckpt_path="):
        write_results(collect([tmp_path]), "Results", "", tmp_path / "page.md")

"""The Markdown page of results, and the command line."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from lfvit.errors import DataError
from lfvit.measure.predictions import read_predictions
from lfvit.measure.thresholds import correct_at
from lfvit.results.__main__ import main
from lfvit.results.collect import collect
from lfvit.results.comparisons import WAYS, Evaluated, against, equal_accuracy
from lfvit.results.results import PageText, without_paths, write_results

pytest_plugins = ("report_runs",)


def test_every_figure_on_the_page_comes_from_the_files(runs, tmp_path):
    page = tmp_path / "page.md"
    found = collect([runs / "lf_0", runs / "vit_0"])
    write_results(found, PageText("A title", "An introduction."), page)
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
    write_results(collect([runs]), PageText("Results"), page)
    tops = [
        json.loads((runs / name / "evaluation" / "evaluate.json").read_text())["second"]["top1"]
        for name in ("lf_0", "lf_1")
    ]
    values = pd.Series(tops)
    row = f"| LF-ViT | both passes | 2 | {values.mean():.2f} ± {values.std():.2f} |"
    assert row in page.read_text()
    assert "nan" not in page.read_text()


def test_models_are_compared_image_by_image(runs, tmp_path, nasty_class):
    from report_runs import nasty_patterns

    page = tmp_path / "page.md"
    notes = tmp_path / "artifact" / "page.md"
    notes.parent.mkdir()
    notes.write_text("# What did not work\n\nA thing. ![Seen](seen.png)\n\n![Gone](gone.png)\n")
    (notes.parent / "seen.png").write_bytes(b"a picture")
    with nasty_patterns():
        write_results(
            collect([runs]), PageText("Results", notes=[notes], pictures=2, names=3), page
        )
    text = page.read_text()
    read = {run.folder.parent.name: run for run in collect([runs]).runs}
    lf, cf, vit = (
        Evaluated.read(read[name].evaluation, read[name].folder)
        for name in ("lf_0", "cf_0", "vit_0")
    )
    for model, ours in (("LF-ViT", lf), ("CF-ViT", cf)):
        for way in WAYS:
            found = against([ours], [vit], way)
            start = f"| {model} | {found.way} | 1 | {found.comparison.images} | "
            assert f"{start}{found.comparison.difference:+.2f} | " in text
        answer = equal_accuracy(*(against([ours], [vit], way) for way in ("equal", "budget")))
        assert f"- **{model}**: {answer}" in text
    rows = lf.predictions
    second = read_predictions(read["lf_1"].folder / "predictions.parquet")
    changed = [100 * (~correct_at(each, 0.0) & correct_at(each)).mean() for each in (rows, second)]
    assert f"{sum(changed) / 2:.2f} ± " in text
    assert "\n\n## What did not work\n\nA thing. ![Seen](images/page_seen.png)\n\n![Gone]" in text
    assert (tmp_path / "images/page_seen.png").read_bytes() == b"a picture"
    assert nasty_class not in text
    pictures = re.findall(r"\]\((images/page_\w+\.jpg)\)", text)
    assert pictures
    captions = re.findall(r"^.*\(\d+ of 16 images\)\.\n\n(?=\|)", text, flags=re.MULTILINE)
    assert len(captions) == sum("put_wrong" not in name for name in pictures)
    for caption in captions:
        lines = text.split(f"{caption}|")[1].split("\n\n")[0].splitlines()[2:]
        assert 1 <= len(lines) <= 3
        for line in lines:
            _, truth, first, confidence, both = line.strip("| ").split(" | ")
            answer = first if "first look was" in caption or "confident" in caption else both
            assert (answer == truth) == ("right" in caption)
            assert 0 < float(confidence) <= 1
    assert all(1000 < (tmp_path / name).stat().st_size < 100_000 for name in pictures)
    assert (tmp_path / "page_differences.png").stat().st_size > 5000


def test_a_page_about_evaluations_from_before_answers_were_kept(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("predictions.parquet"):
        path.unlink()
    page = tmp_path / "page.md"
    write_results(collect([tmp_path / "runs"]), PageText("Results", pictures=2), page)
    text = page.read_text()
    listed = text.split("## Not compared image by image\n\n")[1].split("\n\n## ")[0]
    assert listed.count("no such file; evaluate.py") == 4
    assert "## Examples\n\nNot shown: " in text


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
    command = [sys.executable, "-m", "lfvit.results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no evaluated run: evaluate.py writes what is collected here" in done.stderr


def test_an_unevaluated_run_says_what_to_do(runs, tmp_path):
    shutil.copytree(runs / "vit_0", tmp_path / "vit")
    shutil.rmtree(tmp_path / "vit" / "evaluation")
    with pytest.raises(DataError, match=r"vit: not evaluated: python evaluate\.py ckpt_path="):
        write_results(collect([tmp_path]), PageText("Results"), tmp_path / "page.md")

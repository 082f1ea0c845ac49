"""Models beside each other image by image, and the Markdown page about them."""

import shutil
import sys

import pandas as pd
import pytest
from synthetic import edit, make_evaluation, make_runs

from lfvit.cli import main
from lfvit.commands import report
from lfvit.errors import DataError
from lfvit.measure.thresholds import NO_EXIT, correct_at, stratified_split
from lfvit.results.collect import Run, collect
from lfvit.results.paired import BUDGET, WAYS, compare_models, point_at
from lfvit.results.report import compare_all, write_report


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs") / "runs")


@pytest.fixture(scope="module")
def collected(runs):
    return {run.folder.parent.name: run for run in collect([runs]).runs}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_a_model(collected, way):
    lf, vit = collected["lf_0"], collected["vit_0"]
    row = compare_models([lf], [vit], way)
    ours = point_at(lf, way, point_at(vit, "both"))
    theirs = correct_at(vit.predictions, NO_EXIT).loc[ours.correct.index]
    assert row["difference"] == pytest.approx(100 * (ours.correct.mean() - theirs.mean()))
    assert row["cost"] == pytest.approx(100 * ours.gmacs / 4)
    assert row["way"] == WAYS[way]
    chosen = way in ("calibrated", "equal", "budget")
    assert row["images"] == (30 if way == "calibrated" else 60)
    assert (row["exits"] is not None) == chosen
    if chosen:
        assert ours.gmacs == pytest.approx(3 - 2 * ours.exit_fraction)


def test_calibrated_is_the_evaluations_own_point(collected):
    point = collected["lf_0"].evaluation.point("max_loss=0.5")
    ours = point_at(collected["lf_0"], "calibrated")
    assert 100 * ours.correct.mean() == pytest.approx(point.top1)
    assert ours.gmacs == pytest.approx(point.gmacs)


def model(first, last=None, confidence=None, tmp="x"):
    """A run whose predictions are given as right (1) or wrong, image by image."""
    columns = {"target": [0] * len(first), "prediction_1": [1 - int(bit) for bit in first]}
    columns["confidence_1"] = pd.Series(confidence or [0.5] * len(first), dtype="float32")
    if last is not None:
        columns |= {"prediction_2": [1 - int(bit) for bit in last]}
        columns |= {"confidence_2": columns["confidence_1"]}
    index = pd.Index([f"image {i}" for i in range(len(first))], name="image")
    predictions = pd.DataFrame(columns).set_index(index)
    evaluation = make_evaluation(predictions, {"name": "lf_vit" if last else "vit"}, "x")
    run = Run(tmp, "x", evaluation)
    run.__dict__["predictions"] = predictions  # instead of the file's
    return run


@pytest.mark.parametrize("larger", [0, 1])
def test_of_several_one_pass_models_the_one_of_highest_cost_is_compared_with(larger):
    plain = [model("1" * 10) for _ in range(2)]
    for number, run in enumerate(plain):
        vars(run)["model"] = f"vit {number}"  # Run and its evaluation are frozen
        vars(run.evaluation.passes[0])["gmacs"] = 9.0 if number == larger else 4.0
    beside, rows, _ = compare_all(plain)
    assert beside == f"vit {larger}"
    assert [row["model"] for row in rows] == [f"vit {1 - larger}"]


def test_thresholds_for_equal_accuracy_and_for_a_budget():
    bits, vit = "1" * 60 + "0" * 40, model("1" * 60 + "0" * 40)
    cheap = model(bits, "1" * 100, [0.9] * 60 + [0.2] * 40)
    equal, budget = (compare_models([cheap], [vit], way) for way in ("equal", "budget"))
    assert equal["cost"] == pytest.approx(25)
    assert equal["verdict"] == "no difference shown"
    assert budget["cost"] <= 100 * BUDGET + 5
    slow = model("0" * 100, "1" * 100, [0.2 + 0.007 * i for i in range(100)])
    equal, budget = (compare_models([slow], [model("1" * 100)], way) for way in ("equal", "budget"))
    assert equal["cost"] > 70
    assert (equal["verdict"], budget["verdict"]) == ("no difference shown", "less accurate")
    better = compare_models([model("1" * 100)], [model("0" * 100)])
    assert [better[key] for key in ("verdict", "way", "cost")] == ["more accurate", "pass 1", 100]


def test_no_image_is_run_with_a_threshold_that_it_helped_to_choose():
    """The first pass is right about one half, from which all images of the other leave early."""
    rules = model("1" * 40, "1" * 40).evaluation.settings
    half, _ = stratified_split(pd.Series([0] * 40), rules.calibration, rules.calibration_seed)
    bits = "".join("1" if i in half else "0" for i in range(40))
    point = point_at(model(bits, "1" * 40), "equal", point_at(model("1" * 40), "both"))
    right = point.correct.sort_index(key=lambda names: names.str.split().str[1].astype(int))
    assert "".join(str(int(bit)) for bit in right) == bits
    assert point.exit_fraction == 0.5


def test_every_figure_on_the_page_comes_from_the_files(runs, collected, tmp_path):
    page = tmp_path / "page.md"
    text = {"title": "A title", "intro": "In short.", "command": "lfvit report runs"}
    write_report(collect([runs]), page, **text)
    text = page.read_text()
    assert text.startswith("# A title\n\nIn short.\n\nTop-1 on 60 validation images of fruit")
    for name, label in (("lf_0", "LF-ViT"), ("cf_0", "CF-ViT")):
        rows = [compare_models([collected[name]], [collected["vit_0"]], way) for way in WAYS]
        for row in rows:
            start = f"| {label} | {row['way']} | 1 | {row['images']} | {row['difference']:+.2f} |"
            assert start in text
    assert "**LF-ViT**: Seed 0, 1: `python train.py`, commit abc, a machine, 1 threads" in text
    assert "*Written by `lfvit report runs`, commit " in text
    assert "nan" not in text
    for plot in ("page_accuracy_vs_gmacs.png", "page_differences.png"):
        assert (tmp_path / plot).stat().st_size > 5000


def test_models_that_cannot_be_compared_are_listed(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    (copy / "lf_0" / "evaluation" / "predictions.parquet").unlink()
    file = copy / "cf_0" / "evaluation" / "predictions.parquet"
    rows = pd.read_parquet(file)
    rows.assign(image="other " + rows["image"]).to_parquet(file)
    shutil.rmtree(copy / "lf_1" / "evaluation")
    write_report(collect([copy]), tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    listed = text.split("## Not compared image by image\n\n")[1].split("\n\n## ")[0]
    assert "runs/lf_0/evaluation: " in listed
    assert "no such file" in listed
    assert "CF-ViT beside ViT: the models were evaluated on different images" in listed
    assert "## Left out\n\n- runs/lf_1: not evaluated: python evaluate.py" in text
    edit(copy / "vit_0" / "evaluation" / "evaluate.json", passes=None)
    shutil.rmtree(copy / "cf_0")
    shutil.rmtree(copy / "lf_0")
    with pytest.raises(DataError, match=r"no evaluated run.*\n.*lf_1: not evaluated: python eval"):
        write_report(collect([copy]), tmp_path / "page.md")


def test_the_command_line(runs, tmp_path, monkeypatch, capsys):
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("md", "csv", "parquet")]
    options = [text for path in outputs for text in ("--output", str(path))]
    monkeypatch.setattr(
        sys, "argv", ["lfvit", "report", str(runs / "lf_0"), str(runs / "vit_0"), *options]
    )
    main()
    assert "2 evaluations of 2 models, 0 left out" in capsys.readouterr().out
    assert all(path.exists() for path in outputs)
    monkeypatch.setattr(sys, "argv", ["lfvit", "report", str(runs), "--output", "page.pdf"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "unknown suffix '.pdf'; valid: .html, .md, .csv" in capsys.readouterr().err
    for wrong in (["--artifacts", "nowhere"], ["--examples", "-1"]):
        with pytest.raises(DataError, match=" ".join(wrong)):
            report.main([str(tmp_path), *wrong])
    monkeypatch.setattr(sys, "argv", ["lfvit", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "no evaluated run: evaluate.py writes" in capsys.readouterr().err

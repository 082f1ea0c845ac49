"""Rows of comparisons between trained models, and the answer about equal accuracy."""

import pandas as pd
import pytest

from lfvit.measure.thresholds import correct_at
from lfvit.results.collect import collect
from lfvit.results.comparisons import (
    BUDGET,
    WAYS,
    Evaluated,
    against,
    at,
    difference,
    equal_accuracy,
    verdict,
)

pytest_plugins = ("report_runs",)


@pytest.fixture(scope="module")
def models(runs):
    found = {run.folder.parent.name: run for run in collect([runs]).runs}
    return {name: Evaluated.read(run.evaluation, run.folder) for name, run in found.items()}


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_of_running_a_model(models, way):
    lf, vit = models["lf_0"], models["vit_0"]
    row = against([lf], [vit], way)
    ours = at(lf, way, at(vit, "both"))
    theirs = correct_at(vit.predictions).loc[ours.right.index]
    assert row.comparison.difference == pytest.approx(100 * (ours.right.mean() - theirs.mean()))
    assert row.cost == pytest.approx(100 * ours.gmacs / vit.evaluation["first"]["gmacs"])
    assert (row.way, row.seeds, row.cost_spread) == (WAYS[way], 1, None)
    chosen = way in ("calibrated", "equal", "budget")
    assert row.comparison.images == (8 if chosen else 16)
    assert (row.thresholds is not None) == chosen
    if chosen:
        total = lf.evaluation["first"]["gmacs"], lf.evaluation["second"]["gmacs"]
        assert ours.gmacs == pytest.approx(
            ours.exit_fraction * total[0] + (1 - ours.exit_fraction) * total[1]
        )


def test_calibrated_is_that_of_the_evaluation(models):
    lf = models["lf_0"]
    ours = at(lf, "calibrated")
    assert 100 * ours.right.mean() == pytest.approx(lf.evaluation["calibrated"]["top1"])


def test_two_pass_models_are_compared_on_the_part_they_are_reported_on(models):
    row = against([models["lf_0"]], [models["cf_0"]], "calibrated", "calibrated")
    assert row.comparison.images == 8


def model(bits, both, confidence, gmacs=(1.0, 4.0)):
    """A two-pass model whose answers are given as right (1) or wrong, image by image."""
    n = len(bits)
    rows = pd.DataFrame(
        {
            "target": [0] * n,
            "first": [1 - int(b) for b in bits],
            "second": [1 - int(b) for b in both],
            "confidence": pd.Series(confidence, dtype="float32"),
        }
    )
    rows.index = [f"image {i}" for i in range(n)]
    ends = {"first": {"gmacs": gmacs[0]}, "second": {"gmacs": gmacs[1]}}
    return Evaluated({**ends, "calibration": {"share": 0.5, "seed": 0}}, rows)


def one_pass(bits, gmacs=4.0):
    rows = pd.DataFrame({"target": [0] * len(bits), "first": [1 - int(b) for b in bits]})
    rows.index = [f"image {i}" for i in range(len(bits))]
    return Evaluated({"first": {"gmacs": gmacs}, "second": None}, rows)


def asked(ours, theirs):
    return (against(ours, theirs, way) for way in ("equal", "budget"))


def test_equal_accuracy_for_less():
    ours = model("1" * 60 + "0" * 40, "1" * 100, [0.9] * 60 + [0.2] * 40)
    equal, budget = asked([ours], [one_pass("1" * 60 + "0" * 40)])
    assert equal.cost == pytest.approx(25)
    assert equal.unmet == 0
    text = equal_accuracy(equal, budget)
    assert text.startswith("Yes: equal accuracy, within 1 point, costs 37 % or less here.")
    assert budget.cost <= 100 * BUDGET + 5


def test_equal_accuracy_for_more():
    ours = model("0" * 100, "1" * 100, [0.2 + 0.007 * i for i in range(100)])
    theirs = one_pass("1" * 100)
    equal, budget = asked([ours], [theirs])
    text = equal_accuracy(equal, budget)
    assert text.startswith("No: equal accuracy costs more than 37 % here.")
    assert equal.cost > 90
    assert verdict(equal) == "no difference shown"
    assert verdict(budget) == "less accurate"
    assert difference(budget) in text


def test_equal_accuracy_of_few_images_is_not_claimed():
    bits, other = "10" * 50, "01" * 50  # right half the time, never on the same images
    equal, budget = asked([model(bits, bits, [0.9] * 100)], [one_pass(other)])
    assert equal.cost == pytest.approx(25)
    assert equal_accuracy(equal, budget).startswith("Probably: equal accuracy was found at 37 %")


def test_equal_accuracy_never():
    ours = model("0" * 100, "1" * 50 + "0" * 50, [0.5] * 100)
    seeds = [ours, ours], [one_pass("1" * 100)] * 2
    equal, budget = asked(*seeds)
    assert equal.unmet == 2
    text = equal_accuracy(equal, budget)
    assert text.startswith("Equal accuracy is not reached at any threshold")
    assert "In 2 of 2 seeds no threshold reached" in text
    assert "over 2 seeds" in text
    better = against([one_pass("1" * 100)], [one_pass("0" * 100, gmacs=2.0)])
    assert (verdict(better), better.way, better.cost) == ("more accurate", "one pass", 200)

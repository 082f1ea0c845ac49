"""The table of operating points against trying every threshold, image by image."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_predictions import predicted

from lfvit.errors import ConfigError
from lfvit.measure.operating_points import choose_thresholds, operating_points
from lfvit.measure.schemas import OperatingPoint
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.thresholds import (
    correct_at,
    default_thresholds,
    exit_thresholds,
    predictions_at,
    stratified_split,
    sweep,
)
from lfvit.utils.validation import validate

MACS = [1e9, 3e9]
NONE = {"max_loss": None, "risk": None}


def choose(table, **rules):
    ((_, threshold, reason),) = choose_thresholds(table, MACS, EvaluationSettings(**NONE | rules))
    return threshold, reason


CASE = (st.integers(0, 1000), st.integers(1, 30), st.booleans())


@given(*CASE, st.floats(0.9, 4.2))
@settings(max_examples=20, deadline=None)
def test_the_most_accurate_within_a_budget(seed, n, ties, gmacs):
    table = predicted(seed, n, ties=ties)
    eta, reason = choose(table, max_gmacs=gmacs)
    if gmacs < 1:
        assert (eta, reason) == (None, "the first pass alone costs 1 GMACs")
        return
    point, *others = sweep(table, MACS, [eta, *default_thresholds()]).to_dict("records")
    assert point["gmacs"] <= gmacs + 1e-6
    for other in others:
        if other["gmacs"] <= gmacs:
            assert other["top1"] <= point["top1"] + 1e-9
            assert other["top1"] < point["top1"] or other["gmacs"] >= point["gmacs"] - 1e-9


@given(*CASE, st.floats(0, 100), st.sampled_from(["min_top1", "max_loss"]))
@settings(max_examples=30, deadline=None)
def test_the_cheapest_that_reaches_a_target(seed, n, ties, target, rule):
    table = predicted(seed, n, ties=ties)
    points = sweep(table, MACS)
    eta, reason = choose(table, **{rule: target})
    if rule == "max_loss":
        target = points["top1"].iloc[-1] - target
    good = points[points["top1"] >= target]
    if len(good):
        (point,) = sweep(table, MACS, [eta]).to_dict("records")
        assert point["top1"] >= target
        assert point["gmacs"] == pytest.approx(good["gmacs"].min())
    else:
        assert reason == f"no threshold reaches more than {points['top1'].max():.2f} %"


@given(*CASE, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_no_higher_threshold_sends_so_few_to_the_second_pass(seed, n, ties, percent):
    table = predicted(seed, n, ties=ties)
    eta, _ = choose(table, max_second=percent / 100)
    confidence = torch.tensor(table["confidence_1"].to_numpy())
    assert 100 * (confidence < eta).sum() <= percent * n
    higher = torch.nextafter(torch.tensor(eta, dtype=torch.float32), torch.tensor(2.0))
    assert percent == 100 or 100 * (confidence < higher).sum() > percent * n


@pytest.mark.parametrize("passes", [2, 3])
def test_every_row_is_measured_on_the_images_it_names(passes):
    table = predicted(3, 700, passes=passes)
    macs = [1e9, 3e9, 2e9][:passes]
    rules = EvaluationSettings(
        threshold=0.6, calibration=0.4, calibration_seed=5, max_gmacs=2, min_top1=50, max_second=0.3
    )
    points = operating_points(table, macs, rules)
    chosen, rest = (table.iloc[rows] for rows in stratified_split(table["target"], 0.4, 5))
    risks = [f"{loss}<={eps}" for loss in ("consistency", "gap") for eps in (0.01, 0.02, 0.05)]
    passes_named = [f"pass {i + 1}" for i in range(passes)]
    chosen_rules = ["max_loss=0.5", "max_gmacs=2", "min_top1=50", "max_second=0.3"]
    by_exit = [f"{rule} by exit" for rule in chosen_rules[:2]] if passes > 2 else []
    assert list(points["rule"]) == [*passes_named, "threshold", *by_exit, *chosen_rules, *risks]
    for i in range(passes):
        row, answers = points.iloc[i], table[f"prediction_{i + 1}"]
        assert row["top1"] == pytest.approx(100 * (answers == table["target"]).mean())
        assert row["gmacs"] == sum(macs[: i + 1]) / 1e9
        assert row["exit_fraction"] == (i < passes - 1)
    for row in points.iloc[passes:].to_dict("records"):
        part = rest if row["chosen_on"] else table
        eta = row["thresholds"] or row["threshold"]
        assert row["images"] == len(part)
        assert row["chosen_on"] in (0, len(chosen))
        assert row["top1"] == pytest.approx(100 * correct_at(part, eta).mean())
        assert row["reference_top1"] == pytest.approx(100 * correct_at(part).mean())
        changed = predictions_at(part, eta) != predictions_at(part)
        assert row["consistency"] == pytest.approx(changed.mean())
    for row in points.to_dict("records"):
        OperatingPoint(**row)
    assert "NaN" not in json.dumps(points.to_dict("records"))


def test_thresholds_of_each_exit_by_brute_force():
    table, macs = predicted(0, 60, passes=3), [1e9, 2e9, 4e9]
    classes = table.filter(like="prediction_").to_numpy()
    confidence = table.filter(like="confidence_").to_numpy()
    etas = [[0.5, 0.9], [0.9, 0.5], [1.01, 0.7], [0.0, 0.0]]
    for (first, second), row in zip(etas, sweep(table, macs, etas).to_dict("records"), strict=True):
        right = cost = 0.0
        for i in range(len(table)):
            exits = (confidence[i, 0] >= first, confidence[i, 1] >= second, True)
            stop = exits.index(True)
            right += classes[i, stop] == table["target"].iloc[i]
            cost += sum(macs[: stop + 1])
        assert row["top1"] == pytest.approx(100 * right / len(table))
        assert row["gmacs"] == pytest.approx(cost / len(table) / 1e9)


def test_thresholds_of_each_exit_keep_a_budget_on_the_calibration_images():
    table, macs = predicted(1, 400, passes=3), [1e9, 2e9, 4e9]
    assert np.ptp(exit_thresholds(table), axis=1).max() > 0.1  # some differ by exit
    rules = EvaluationSettings(max_gmacs=3.0, risk=None)
    found = {rule: threshold for rule, threshold, _ in choose_thresholds(table, macs, rules)}
    one, each = (
        sweep(table, macs, [found[f"max_gmacs=3{suffix}"]]).iloc[0] for suffix in ("", " by exit")
    )
    assert max(one["gmacs"], each["gmacs"]) <= 3.0 + 1e-6
    assert each["top1"] >= sweep(table, macs).query("gmacs <= 3")["top1"].max() - 1e-9
    tight = operating_points(table, macs, EvaluationSettings(max_gmacs=0.5, risk=None))
    assert "the first pass alone" in tight.set_index("rule").loc["max_gmacs=0.5 by exit"].reason


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_fewest_images(n):
    rules = EvaluationSettings(max_gmacs=0.5, max_second=0)
    points = operating_points(predicted(1, n), MACS, rules).set_index("rule")
    assert points.loc["max_gmacs=0.5", "reason"] == "the first pass alone costs 1 GMACs"
    assert points.loc["max_loss=0.5", "threshold"] is not None  # the last pass is always there
    for rule, eps in (("gap<=0.01", 230), ("consistency<=0.05", 45)):
        assert points.loc[rule, "reason"] == f"needs at least {eps} calibration images"
        assert points.loc[rule, "top1"] is None
    one_pass = operating_points(predicted(1, n, passes=1), [2e9], EvaluationSettings(threshold=0.5))
    (row,) = one_pass.to_dict("records")
    assert (row["rule"], row["gmacs"], row["exit_fraction"]) == ("pass 1", 2, 0)
    assert row["reference_top1"] == row["top1"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_gmacs": float("nan")}, "max_gmacs=nan"),
        ({"risk": {"losses": ["top1"]}}, r"risk\.losses\.0='top1' is unknown"),
        ({"risk": {"losses": "gap", "eps": [0.1, 1]}}, r"risk\.eps\.1=1"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ConfigError, match=message):
        validate(EvaluationSettings, wrong)

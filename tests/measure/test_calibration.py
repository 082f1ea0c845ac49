"""Rules and budgets against trying every threshold, image by image."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.measure.calibration import (
    Calibration,
    RiskSettings,
    calibrate,
    costs_at_most,
    geometric_fractions,
    quantile,
    reaches,
)
from lfvit.measure.thresholds import (
    NOBODY_EXITS,
    answers_of,
    confidence_of,
    default_thresholds,
    stratified_split,
)

MACS = (1e9, 3e9)


def logits(seed, n, classes=4, ties=False):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    right = torch.nn.functional.one_hot(targets, classes)
    first = 2 * torch.randn(n, classes, generator=generator) + 2 * right
    second = 2 * torch.randn(n, classes, generator=generator) + 3 * right
    return (first.round() if ties else first), second, targets


def by_hand(first, second, targets, eta):
    """Top-1, exit fraction and GMACs of one threshold."""
    right = exits = 0
    for i in range(len(targets)):
        early = bool(first[i].softmax(0).max() >= eta)
        exits += early
        right += int((first if early else second)[i].argmax() == targets[i])
    n = len(targets)
    return 100 * right / n, exits / n, 1 + 3 * (n - exits) / n


CASE = (st.integers(0, 1000), st.integers(1, 30), st.booleans())


@given(*CASE, st.floats(0.9, 4.2))
@settings(max_examples=20, deadline=None)
def test_the_most_accurate_within_a_budget(seed, n, ties, gmacs):
    passes = logits(seed, n, ties=ties)
    found = costs_at_most(answers_of(*passes), MACS, gmacs)
    if gmacs < 1:
        assert found == "the first pass alone costs 1 GMACs"
        return
    top1, _, cost = by_hand(*passes, found)
    assert cost <= gmacs + 1e-6
    for eta in default_thresholds():
        other_top1, _, other_cost = by_hand(*passes, eta)
        if other_cost <= gmacs:
            assert other_top1 <= top1 + 1e-9
            assert other_top1 < top1 or other_cost >= cost - 1e-9


@given(*CASE, st.floats(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_cheapest_that_reaches_a_target(seed, n, ties, target):
    passes = logits(seed, n, ties=ties)
    found = reaches(answers_of(*passes), MACS, target)
    points = [by_hand(*passes, eta) for eta in default_thresholds()]
    good = [cost for top1, _, cost in points if top1 >= target]
    if good:
        top1, _, cost = by_hand(*passes, found)
        assert top1 >= target
        assert cost == pytest.approx(min(good))
    else:
        assert found == f"no threshold reaches more than {max(p[0] for p in points):.2f} %"


@given(*CASE, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_at_least_the_share_exits_and_no_threshold_above_does_it(seed, n, ties, percent):
    first, _, _ = logits(seed, n, ties=ties)
    confidence = confidence_of(first)
    eta = quantile(confidence, percent / 100)
    assert 100 * (confidence >= eta).sum() >= percent * n
    higher = torch.nextafter(torch.tensor(eta), torch.tensor(2.0))
    assert percent == 0 or 100 * (confidence >= higher).sum() < percent * n


def test_none_and_all_exit():
    confidence = torch.tensor([0.3, 0.9, 0.3])
    assert quantile(confidence, 0) == NOBODY_EXITS
    assert quantile(confidence, 1) == pytest.approx(0.3)
    assert quantile(confidence, 0.5) == pytest.approx(0.3)  # the two equal ones exit together
    assert quantile(confidence[:1], 0.01) == pytest.approx(0.3)


def test_geometric_fractions():
    for q in (0.01, 0.5, 1.0, 7.0):
        for stages in (2, 3, 5):
            found = geometric_fractions(q, stages)
            assert sum(found) == pytest.approx(1)
            assert [b / a for a, b in pairwise(found)] == pytest.approx([q] * (stages - 1))
    assert geometric_fractions(3, 2) == [0.25, 0.75]


def test_every_number_on_its_own_part():
    passes = logits(3, 700)
    settings = Calibration(
        seed=5, share=0.4, max_gmacs=2.0, min_top1=60, max_second=0.3, scaled_curve=True
    )
    found = calibrate(*passes, MACS, settings)
    parts = dict(zip(("calibration", "reported"), stratified_split(passes[2], 0.4, 5), strict=True))
    assert [r["name"] for r in found["rules"]] == [
        "max_loss",
        "max_gmacs",
        "min_top1",
        "max_second",
    ]
    assert len(found["budgeted_batch"]["points"]) == 19
    certificates = found["risk"]["certificates"]
    assert [(c["loss"], c["eps"]) for c in certificates] == [
        (loss, eps) for loss in ("consistency", "gap") for eps in (0.01, 0.02, 0.05)
    ]
    for choice in (*found["rules"], *found["budgeted_batch"]["points"], *certificates):
        for name, rows in parts.items():
            point = choice[name]
            top1, exits, gmacs = by_hand(*(t[rows] for t in passes), choice["threshold"])
            assert point["top1"] == pytest.approx(top1)
            assert point["exit_fraction"] == pytest.approx(exits)
            assert point["gmacs"] == pytest.approx(gmacs)
    for certificate in certificates:
        assert certificate["risk"] == certificate["calibration"]["risk"] <= certificate["eps"]
        both = found["both_passes"]["calibration"]["top1"]
        lost = both - certificate["calibration"]["top1"]
        assert certificate["calibration"]["gap"] == pytest.approx(lost / 100)
    curve = found["temperature"]["curve"]
    rest = [t[parts["reported"]] for t in passes]
    scaled = rest[0] / found["temperature"]["temperature"]
    assert curve == lfvit.sweep_thresholds(scaled, *rest[1:], *MACS)
    assert curve[0]["top1"] == pytest.approx(by_hand(*rest, 0)[0])  # predictions stay
    assert "NaN" not in json.dumps(found)


def test_budgets_are_met_on_the_calibration_part_and_nearly_on_the_other():
    found = calibrate(*logits(0, 4000), MACS, Calibration())["budgeted_batch"]["points"]
    for point in found:
        assert point["calibration"]["gmacs"] <= point["budget_gmacs"] + 1e-9
        assert point["calibration"]["gmacs"] == pytest.approx(point["budget_gmacs"], abs=0.01)
        assert point["reported"]["gmacs"] == pytest.approx(point["budget_gmacs"], abs=0.15)
        assert point["exit_fractions"][0] == pytest.approx(1 / (1 + point["q"]))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_fewest_images(n):
    asked = Calibration(max_gmacs=0.5, min_top1=100, max_second=0)
    found = calibrate(*logits(1, n), MACS, asked)
    outcomes = {rule["name"]: rule["outcome"] for rule in found["rules"]}
    assert outcomes["max_gmacs"] == "none: the first pass alone costs 1 GMACs"
    assert found["rules"][3]["calibration"]["exit_fraction"] == 1  # max_second=0
    for certificate in found["risk"]["certificates"]:
        assert certificate["outcome"].startswith("none: needs at least")
        assert certificate["reported"] is None
    assert "NaN" not in json.dumps(found)


def test_what_is_not_asked_for_is_not_there():
    off = Calibration(budgeted_batch=None, temperature=False, risk=None)
    found = calibrate(*logits(1, 20), MACS, off)
    assert [rule["name"] for rule in found["rules"]] == ["max_loss"]
    assert found["budgeted_batch"] is found["temperature"] is found["risk"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1}, "calibration=1"),
        ({"seed": -1}, "calibration_seed=-1"),
        ({"max_loss": None}, "max_loss=None"),
        ({"max_gmacs": 0}, "max_gmacs=0"),
        ({"max_gmacs": float("nan")}, "max_gmacs=nan"),
        ({"min_top1": 101}, "min_top1=101"),
        ({"max_second": 1.5}, r"max_second=1\.5"),
        ({"budgeted_batch": 0}, "budgeted_batch=0"),
        ({"temperature": 2.0}, r"temperature=2\.0 must be true or false"),
        ({"scaled_curve": None}, "scaled_curve=None"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Calibration(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": ["top1"]}, r"risk\.losses='top1'"),
        ({"eps": [0.1, 1]}, r"risk\.eps=1 "),
        ({"eps": [0]}, r"risk\.eps=0 "),
        ({"delta": 0}, r"risk\.delta=0 "),
        ({"delta": 1}, r"risk\.delta=1 "),
    ],
)
def test_wrong_risks(settings, message):
    with pytest.raises(ConfigError, match=message):
        RiskSettings(**settings)

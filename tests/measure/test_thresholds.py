"""The threshold curve against counting image by image, and against the model itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.measure.predictions import Predictions
from lfvit.measure.thresholds import (
    NO_EXIT,
    calibrate,
    correct_at,
    default_thresholds,
    predictions_at,
    stratified_split,
    sweep,
)


def logits(seed, n=37, classes=5, passes=2):
    generator = torch.Generator().manual_seed(seed)
    found = [2 * torch.randn(n, classes, generator=generator) for _ in range(passes)]
    return found, torch.randint(classes, (n,), generator=generator)


@settings(max_examples=40)
@given(seed=st.integers(0, 99), passes=st.integers(2, 3), max_loss=st.sampled_from([0.0, 0.5, 9.0]))
def test_no_threshold_below_the_calibrated_one_keeps_the_accuracy(seed, passes, max_loss):
    found, targets = logits(seed, passes=passes)
    predictions = Predictions(found, targets).table()
    threshold = calibrate(predictions, max_loss)
    wanted = correct_at(predictions).mean() - max_loss / 100 - 1e-9
    kept = [eta for eta in default_thresholds() if correct_at(predictions, eta).mean() >= wanted]
    assert threshold == min(kept)


def count_by_hand(found, targets, threshold, macs):
    """Top-1, exit fraction, GMACs and consistency, one image at a time."""
    n = len(targets)
    right = early = differs = cost = 0
    for i in range(n):
        confident = [of_pass[i].softmax(0).max() >= threshold for of_pass in found[:-1]]
        answered = confident.index(True) if any(confident) else len(found) - 1
        answer = found[answered][i].argmax()
        right += int(answer == targets[i])
        differs += int(answer != found[-1][i].argmax())
        early += answered < len(found) - 1
        cost += sum(macs[: answered + 1])
    return 100 * right / n, early / n, cost / n / 1e9, differs / n


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_every_point_is_what_counting_gives(seed, n, passes):
    found, targets = logits(seed, n, passes=passes)
    macs = [1e9, 3e9, 2e9, 5e9][:passes]
    table = Predictions(found, targets).table()
    curve = sweep(table, macs)
    assert curve["threshold"].tolist() == default_thresholds()
    for point in curve.to_dict("records")[::7]:
        eta = point.pop("threshold")
        expected = count_by_hand(found, targets, eta, macs)
        assert tuple(point.values()) == pytest.approx(expected)
        assert 100 * correct_at(table, eta).mean() == pytest.approx(point["top1"])
        last = table[f"prediction_{passes}"]
        assert (predictions_at(table, eta) != last).mean() == pytest.approx(point["consistency"])


def test_two_passes_by_the_public_name():
    (first, second), targets = logits(1)
    zero, above = lfvit.sweep_thresholds(first, second, targets, 1e9, 3e9, [0.0, NO_EXIT])
    assert zero["exit_fraction"] == zero["gmacs"] == 1
    assert zero["top1"] == pytest.approx(100 * (first.argmax(1) == targets).float().mean().item())
    assert above["exit_fraction"] == 0
    assert above["gmacs"] == 4
    assert above["top1"] == pytest.approx(100 * (second.argmax(1) == targets).float().mean().item())
    assert len(lfvit.sweep_thresholds(first, second, targets, 1e9, 3e9)) == 102
    confidence = first.softmax(1).amax(1)
    (point,) = lfvit.sweep_thresholds(first, second, targets, 1, 1, [confidence[0].item()])
    assert point["exit_fraction"] == (confidence >= confidence[0]).double().mean().item()
    for broken in ((first[:0], second[:0], targets[:0]), (first, second[1:], targets)):
        with pytest.raises(ConfigError, match="same images"):
            lfvit.sweep_thresholds(*broken, 1, 1)


@given(st.integers(4, 200), st.integers(1, 7), st.floats(0.3, 0.7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_and_stratified(n, classes, share, seed):
    targets = np.random.default_rng(seed).integers(classes, size=n)
    first, second = stratified_split(targets, share, seed)
    assert sorted([*first, *second]) == list(range(n))
    for label in range(classes):
        taken = (targets[first] == label).sum()
        assert abs(taken - share * (targets == label).sum()) <= 1
    assert np.array_equal(first, stratified_split(targets, share, seed)[0])
    with pytest.raises(ConfigError, match="leaves one of the two parts empty"):
        stratified_split(targets[:1], share, seed)

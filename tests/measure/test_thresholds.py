"""The threshold curve against counting image by image, and against the model itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lfvit
from lfvit.errors import ConfigError
from lfvit.measure.risk import mean_loss
from lfvit.measure.thresholds import (
    answers_of,
    cheapest_at,
    default_thresholds,
    stratified_split,
    sweep,
)


def logits(seed, n=37, classes=5):
    generator = torch.Generator().manual_seed(seed)
    first = 2 * torch.randn(n, classes, generator=generator)
    second = 2 * torch.randn(n, classes, generator=generator)
    return first, second, torch.randint(classes, (n,), generator=generator)


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_curve_is_what_counting_gives(seed, n):
    first, second, targets = logits(seed, n)
    curve = lfvit.sweep_thresholds(first, second, targets, 1e9, 3e9)
    assert [p["threshold"] for p in curve] == default_thresholds()
    for point in curve:
        right = exits = changed = both_right = 0
        for i in range(n):
            early = bool(first[i].softmax(0).max() >= point["threshold"])
            exits += early
            answer = (first if early else second)[i].argmax()
            changed += int(answer != second[i].argmax())
            right += int(answer == targets[i])
            both_right += int(second[i].argmax() == targets[i])
        assert point["top1"] == pytest.approx(100 * right / n)
        assert point["exit_fraction"] == pytest.approx(exits / n)
        assert point["gmacs"] == pytest.approx(1 + 3 * (1 - exits / n))
        assert point["consistency"] == pytest.approx(changed / n)
        assert point["gap"] == pytest.approx((both_right - right) / n)


def test_ends_of_the_curve():
    first, second, targets = logits(1)
    zero, above = lfvit.sweep_thresholds(first, second, targets, 1e9, 3e9, [0.0, 1.01])
    assert zero["exit_fraction"] == 1
    assert zero["top1"] == pytest.approx(100 * (first.argmax(1) == targets).float().mean().item())
    assert above["exit_fraction"] == 0
    assert above["top1"] == pytest.approx(100 * (second.argmax(1) == targets).float().mean().item())


def test_risks_are_those_of_the_certificates():
    answers = answers_of(*logits(4))
    for point in sweep(answers, 1e9, 3e9, [0.3, 0.5, 0.8]):
        assert point["consistency"] == mean_loss(answers, "consistency", point["threshold"])
        exits = answers.confidence >= point["threshold"]
        early = torch.where(exits, answers.first, answers.second) == answers.targets
        lost = (answers.second == answers.targets).sum() - early.sum()
        assert point["gap"] == lost.item() / len(answers.targets)


def test_an_image_exactly_on_the_threshold_exits():
    first, second, targets = logits(2)
    confidence = first.softmax(1).amax(1)
    (point,) = lfvit.sweep_thresholds(first, second, targets, 1, 1, [confidence[0].item()])
    assert point["exit_fraction"] == (confidence >= confidence[0]).double().mean().item()


def test_curve_agrees_with_the_model(tiny):
    torch.manual_seed(0)
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=5).eval()
    images, targets = torch.randn(9, 3, 112, 112), torch.randint(5, (9,))
    with torch.no_grad():
        out = model(images)
    middle = out.first_logits.softmax(1).amax(1).mean().item()
    curve = lfvit.sweep_thresholds(
        out.first_logits, out.second_logits, targets, 1, 1, [0.0, middle, 1.01]
    )
    for point in curve:
        found = model.infer(images, point["threshold"])
        assert point["exit_fraction"] == pytest.approx(found.exited.float().mean().item())
        right = (found.logits.argmax(1) == targets).float().mean().item()
        assert point["top1"] == pytest.approx(100 * right)


def test_shapes_that_do_not_belong_together():
    first, second, targets = logits(0)
    for broken in ((first[:0], second[:0], targets[:0]), (first, second[1:], targets)):
        with pytest.raises(ConfigError, match="same images"):
            lfvit.sweep_thresholds(*broken, 1, 1)


def test_cheapest_point():
    first, second, targets = logits(3)
    curve = lfvit.sweep_thresholds(first, second, targets, 1e9, 3e9)
    best = max(p["top1"] for p in curve)
    found = cheapest_at(curve, best)
    assert found["top1"] == best
    assert all(p["gmacs"] >= found["gmacs"] for p in curve if p["top1"] == best)
    assert cheapest_at(curve, 101) is None


@given(st.integers(4, 200), st.integers(1, 7), st.floats(0.3, 0.7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_and_stratified(n, classes, share, seed):
    targets = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    first, second = stratified_split(targets, share, seed)
    assert sorted(torch.cat([first, second]).tolist()) == list(range(n))
    for label in range(classes):
        members = (targets == label).sum().item()
        taken = (targets[first] == label).sum().item()
        assert abs(taken - share * members) <= 1
    assert torch.equal(first, stratified_split(targets, share, seed)[0])


@pytest.mark.parametrize("share", [0, 1, 1.5, "half"])
def test_wrong_shares(share):
    with pytest.raises(ConfigError, match="calibration="):
        stratified_split(torch.zeros(10), share, 0)


def test_too_few_images_to_split():
    with pytest.raises(ConfigError, match="leaves one of the two parts empty"):
        stratified_split(torch.zeros(1), 0.5, 0)

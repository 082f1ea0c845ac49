"""What follows from the outputs of one run over some images."""

import pytest
import torch

import lfvit
from lfvit.errors import DataError
from lfvit.measure.calibration import Calibration, calibrate
from lfvit.measure.evaluation import Outputs, calibrated, join, pass_accuracy, results


def outputs(n, seed, classes=6):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    answer = torch.nn.functional.one_hot(targets, classes)
    first = torch.randn(n, classes, generator=generator) + answer
    second = torch.randn(n, classes, generator=generator) + 3 * answer
    return Outputs(first, second, targets)


def chosen_on_half(outputs, seed, max_loss=0.0):
    settings = Calibration(share=0.5, seed=seed, max_loss=max_loss)
    return calibrated(calibrate(*outputs[:3], (1e9, 3e9), settings))


@pytest.mark.parametrize("n", [2, 3, 7, 100, 999, 1003])
@pytest.mark.parametrize("seed", range(5))
def test_there_is_always_a_calibrated_threshold(n, seed):
    """Whatever the accuracy, its rounding never hides the point where no image exits."""
    found = chosen_on_half(outputs(n, seed), seed)
    assert found["calibration_images"] + found["reported_images"] == n
    assert 1 <= found["gmacs"] <= 4


@pytest.mark.parametrize("max_loss", [0.0, 0.5, 5.0])
def test_the_calibrated_threshold_is_the_cheapest_that_loses_no_more(max_loss):
    from lfvit.measure.thresholds import stratified_split

    everything = outputs(1000, 1)
    found = chosen_on_half(everything, 7, max_loss)
    chosen, rest = stratified_split(everything.targets, 0.5, 7)
    part = [column[chosen] for column in everything[:3]]
    curve = lfvit.sweep_thresholds(*part, 1e9, 3e9)
    good = [p for p in curve if p["top1"] >= curve[-1]["top1"] - max_loss]
    assert found["threshold"] == min(good, key=lambda p: p["gmacs"])["threshold"]
    part = [column[rest] for column in everything[:3]]
    (reported,) = lfvit.sweep_thresholds(*part, 1e9, 3e9, [found["threshold"]])
    assert found["top1"] == reported["top1"]


def test_accuracy_in_percent():
    logits = torch.eye(6)[[0, 1, 2, 3]]
    found = pass_accuracy(logits, torch.tensor([0, 1, 2, 5]))
    assert found["top1"] == 75
    few = pass_accuracy(torch.eye(3)[:2], torch.tensor([0, 2]))
    assert few == {"top1": 50, "top5": 100}


def test_results_of_a_two_pass_model(tiny):
    model = lfvit.create_model("lf_vit", backbone=tiny, image_size=112, num_classes=6)
    found = results(model, outputs(50, 0), threshold=0.5, calibration=Calibration())
    assert found["second"]["gmacs"] == pytest.approx(lfvit.count_macs(model) / 1e9)
    assert "localisation" not in found


def test_nothing_to_join():
    with pytest.raises(DataError, match="not one image could be read"):
        join([])

"""Two precisions of the same weights, on numbers that can be counted by hand."""

import pytest
import torch

from lfvit.measure.evaluation import Outputs
from lfvit.measure.precision import compare

LOGITS = torch.tensor([[4.0, 0, 0], [0, 3.0, 0], [0, 0, 0.5], [0.2, 0, 0]])
TARGETS = torch.tensor([0, 1, 2, 1])
CELLS = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])


def outputs(first, second, cells=CELLS):
    return Outputs(first, second, TARGETS, cells=cells)


def test_nothing_differs_from_itself():
    found = compare(
        outputs(LOGITS, LOGITS), outputs(LOGITS, LOGITS, CELLS.flip(1)), (1e9, 2e9), 0.7
    )
    for part in ("first", "second"):
        assert found[part]["same_answers"] == 1
        assert found[part]["top1"] == found[part]["reference_top1"] == 75
        assert found[part]["probability"] == found[part]["confidence"] == {"mean": 0, "max": 0}
    assert found["same_regions"] == found["same_exits"] == 1  # in whatever order the cells come
    assert found["curve"] == {"top1": 0, "exit_fraction": 0}


def test_every_difference_is_counted():
    second = LOGITS.clone()
    second[3] = torch.tensor([0, 0.2, 0])  # another answer, and the right one
    first = LOGITS.clone()
    first[1, 1] = 0.9  # below the threshold now
    cells = CELLS.clone()
    cells[0, 1] = 9
    found = compare(outputs(LOGITS, LOGITS), outputs(first, second, cells), (1e9, 2e9), 0.7)
    assert found["second"]["same_answers"] == 0.75
    assert (found["second"]["top1"], found["second"]["reference_top1"]) == (100, 75)
    p, q = LOGITS[3].softmax(0), second[3].softmax(0)
    assert found["second"]["probability"]["max"] == pytest.approx(float((p - q).abs().max()))
    assert found["second"]["probability"]["mean"] == pytest.approx(float((p - q).abs().sum()) / 12)
    assert found["second"]["confidence"]["max"] == pytest.approx(0, abs=1e-7)
    drop = float(LOGITS[1].softmax(0).max() - first[1].softmax(0).max())
    assert found["first"]["confidence"]["max"] == pytest.approx(drop)
    assert found["same_regions"] == found["same_exits"] == 0.75
    assert found["curve"] == {"top1": 25, "exit_fraction": 0.25}


def test_one_pass_models_have_one_pass():
    found = compare(Outputs(LOGITS, None, TARGETS), Outputs(-LOGITS, None, TARGETS), (0, 0), 0.7)
    assert found["first"]["same_answers"] == 0
    assert found["second"] is found["same_regions"] is found["same_exits"] is found["curve"] is None

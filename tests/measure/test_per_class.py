"""Per-class results against counting by hand."""

import pytest
import torch

from lfvit.measure.per_class import confusion_matrix, final_predictions, per_class
from lfvit.measure.predictions import Predictions

CLASSES = ["a", "b", "c", "never"]


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(200, 4, generator=generator) for _ in range(2)]
    targets = torch.randint(3, (200,), generator=generator)
    for one in logits:
        one[torch.arange(200), targets] += 1
    return Predictions(logits, targets)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.01])
def test_each_figure_is_a_count(predictions, threshold):
    first, last = predictions.logits
    confidence = first.softmax(dim=1).amax(dim=1)
    answers = [
        int((first if confident >= threshold else last)[i].argmax())
        for i, confident in enumerate(confidence.tolist())
    ]
    assert final_predictions(predictions, threshold).tolist() == answers
    targets = predictions.targets.tolist()
    matrix = confusion_matrix(predictions, CLASSES, threshold)
    table = per_class(predictions, CLASSES, threshold)
    for row, name in enumerate(CLASSES):
        mine = [answer for answer, target in zip(answers, targets, strict=True) if target == row]
        for column, other in enumerate(CLASSES):
            assert matrix.loc[name, other] == mine.count(column)
        assert table.loc[name, "images"] == len(mine)
        if mine:
            assert table.loc[name, "threshold_top1"] == pytest.approx(
                100 * mine.count(row) / len(mine)
            )
            others = {other: mine.count(CLASSES.index(other)) for other in CLASSES if other != name}
            assert table.loc[name, "taken_for_images"] == max(others.values())
            assert others[table.loc[name, "taken_for"]] == max(others.values())
        if answers.count(row):
            assert table.loc[name, "precision"] == pytest.approx(
                100 * matrix.loc[name, name] / answers.count(row)
            )
    assert table["threshold_top1"].isna().tolist() == [False, False, False, True]
    right = (last.argmax(dim=1) == predictions.targets).double()
    mean = (table["pass_2_top1"] * table["images"]).sum() / 200
    assert mean == pytest.approx(100 * right.mean().item())


def test_one_pass_has_no_threshold(predictions):
    table = per_class(predictions._replace(logits=predictions.logits[1:]), CLASSES, 0.7)
    assert "threshold_top1" not in table
    assert "pass_2_top1" not in table

"""evaluate.json and predictions.parquet: what is written is read, and nothing else is."""

import json

import pandas as pd
import pytest
import torch

from lfvit.errors import DataError
from lfvit.measure.predictions import (
    Predictions,
    join,
    pass_results,
    read_predictions,
    save_predictions,
)
from lfvit.measure.schemas import Evaluation, read_evaluation

POINT = {"threshold": None, "top1": 50.0, "exit_fraction": 0.0, "gmacs": 1.0, "images": 16}
POINT |= {"rule": "pass 1", "consistency": 0.0, "chosen_on": 0, "reason": None}
EVALUATION = {
    **{"checkpoint": "last.ckpt", "data": "needle", "precision": "32-true", "image_size": 224},
    **{"method": {"name": "vit"}, "backbone": {"timm": "deit_small_patch16_224"}},
    **{"reducer": {"name": "none"}, "seed": 0, "images": 16, "skipped_images": 0, "curve": []},
    "passes": [{"top1": 50.0, "top5": 100.0, "gmacs": 1.0}],
    "operating_points": [POINT | {"reference_top1": 50.0}],
    **{"temperature": None, "localisation": None, "settings": {}},
    "environment": {"command": "python evaluate.py"},
}


def test_what_is_written_is_read(tmp_path):
    evaluation = Evaluation(**EVALUATION)
    path = tmp_path / "evaluate.json"
    path.write_text(evaluation.model_dump_json())
    assert read_evaluation(path) == evaluation
    assert evaluation.configured == evaluation.point("pass 1") == evaluation.operating_points[0]
    assert evaluation.point("threshold") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "written by another version of lfvit; run evaluate.py again"),
        ({"passes": [{"top1": 101, "top5": 100, "gmacs": 1}]}, r"passes\.0\.top1=101"),
        ({"curve": [{"threshold": float("nan")}]}, r"curve\.0\.threshold=nan"),
        ({"second": None}, "second=None: Extra inputs"),
        ("[" * 100_000, ""),
    ],
)
def test_anything_else_is_refused(tmp_path, change, message):
    path = tmp_path / "evaluate.json"
    text = change if isinstance(change, str) else json.dumps({"format": 2} | EVALUATION | change)
    path.write_text(text)
    with pytest.raises(DataError, match=rf"evaluate\.json: {message}"):
        read_evaluation(path)


def predictions(passes=2, n=4, classes=6):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, classes, generator=generator) for _ in range(passes)]
    return Predictions(logits, torch.arange(n), [f"dog/{i}.jpg" for i in range(n)])


@pytest.mark.parametrize("passes", [1, 3])
def test_predictions_survive_the_file(tmp_path, passes):
    save_predictions(predictions(passes).table(), tmp_path / "p.parquet")
    rows = read_predictions(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(rows, predictions(passes).table())
    names = [f"{n}_{i + 1}" for i in range(passes) for n in ("prediction", "confidence")]
    assert list(rows) == ["target", *names]
    assert rows["confidence_1"].dtype == "float32"


def test_files_without_predictions(tmp_path):
    path = tmp_path / "p.parquet"
    with pytest.raises(DataError, match=r"\(no such file\); run evaluate.py again"):
        read_predictions(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(path)
    for change in ({"image": "same"}, {"second": 1}):
        predictions().table().reset_index().assign(**change).to_parquet(path, index=False)
        with pytest.raises(DataError, match="not the predictions of this version"):
            read_predictions(path)


def test_batches_are_joined_in_order():
    """A batch of fillers, as the last of a process may be, has no images and no boxes."""
    whole = predictions(n=6)._replace(boxes=torch.arange(24).view(6, 4))
    parts = [
        Predictions(
            [logits[rows] for logits in whole.logits],
            whole.targets[rows],
            whole.images[rows],
            whole.boxes[rows] if rows.start != rows.stop else None,
        )
        for rows in (slice(0, 4), slice(4, 4), slice(4, 6))
    ]
    joined = join(parts)
    assert joined.images == whole.images
    assert all(map(torch.equal, joined.logits, whole.logits))
    assert torch.equal(joined.boxes, whole.boxes)
    assert joined.cells is None
    with pytest.raises(DataError, match="no image could be read"):
        join(parts[1:2])


def test_accuracy_of_each_pass():
    logits = torch.eye(6)[[0, 1, 2, 3]]
    predictions = Predictions([logits, logits.flip(1)], torch.tensor([0, 1, 2, 5]))
    first, second = pass_results(predictions, torch.tensor([[1e9, 3e9]]))
    assert (first.top1, first.gmacs, second.top1, second.gmacs) == (75, 1, 0, 4)
    assert first.gmacs_std is None
    _, second = pass_results(predictions, torch.tensor([[1e9, 2e9], [1e9, 4e9]]))
    assert (second.gmacs, second.gmacs_std) == (4, pytest.approx(2**0.5))
    (few,) = pass_results(
        Predictions([torch.eye(3)[:2]], torch.tensor([0, 2])), torch.tensor([[1e9]])
    )
    assert (few.top1, few.top5) == (50, 100)

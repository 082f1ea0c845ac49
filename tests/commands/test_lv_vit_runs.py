"""LV-ViT from training to evaluation, on photographs with label maps."""

import json
import shutil

import pytest
import torch

from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.runs.models import load_trained

LV_VIT = (
    *(o for o in NEEDLE_FAST if not o.startswith(("data.train_images", "data.val_images"))),
    "backbone=lv_vit_micro",
    "augment=lv_vit",
    "schedule=cf_vit_lv_vit",
    "schedule.selection_start=1",
    "callbacks.ema.decay=0.9",
)


@pytest.fixture
def label_maps(photographs, tmp_path):
    """One map per photograph, which says its class everywhere."""
    for target, folder in enumerate(sorted(photographs.iterdir())):
        for path in folder.iterdir():
            map_ = tmp_path / "maps" / folder.name / f"{path.stem}.pt"
            map_.parent.mkdir(parents=True, exist_ok=True)
            torch.save(torch.tensor([9.0, target]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3), map_)
    return tmp_path / "maps"


def test_train_with_label_maps_and_evaluate_without(composed, photographs, label_maps, tmp_path):
    run = tmp_path / "run"
    data = ["data=imagefolder", f"data.root={photographs}", f"data.label_maps={label_maps}"]
    cfg = composed("train", *data, *LV_VIT, "method=cf_vit", f"run_dir={run}")
    metrics = train(cfg)
    assert metrics["steps"] == 4
    checkpoint = run / "checkpoints" / "last.ckpt"
    model, record = load_trained(checkpoint)
    assert len(model.backbone.aux_head.weight) == len(record.classes) == 3
    shutil.rmtree(label_maps)
    evaluate(composed("evaluate", f"ckpt_path={checkpoint}", f"run_dir={tmp_path / 'evaluation'}"))
    found = json.loads((tmp_path / "evaluation" / "evaluate.json").read_text())
    assert found["passes"][-1]["top1"] == pytest.approx(metrics["val/top1"], abs=1e-3)

"""What a user looks at: images as augmented, per-class results, best checkpoints, curves."""

import json

import pandas as pd
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

import lfvit
from conftest import NEEDLE_FAST
from lfvit.commands.evaluate import evaluate
from lfvit.commands.train import train
from lfvit.data.classes import readable_names
from lfvit.results.page import write_page
from lfvit.runs.models import load_trained

LOGGED = ("trainer.log_every_n_steps=2",)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, composed):
    """A training of three epochs that keeps its best checkpoints, evaluated."""
    run = tmp_path_factory.mktemp("kept") / "run"
    settings = ("callbacks=top_k", "trainer.max_epochs=3", f"run_dir={run}", *LOGGED)
    train(composed("train", *NEEDLE_FAST, *settings, "callbacks.checkpoint.save_top_k=2"))
    evaluate(
        composed("evaluate", f"ckpt_path={run}", "data.num_workers=0", f"run_dir={run}/evaluation")
    )
    return run


def test_the_best_checkpoints_are_kept(kept):
    names = sorted(path.stem for path in (kept / "checkpoints").glob("epoch=*.ckpt"))
    assert len(names) == 2
    metrics = json.loads((kept / "metrics.json").read_text())
    best = max(names, key=lambda name: float(name.rpartition("=")[2]))
    assert metrics["best_checkpoint"].rpartition("=")[2] == f"{best.rpartition('=')[2]}.ckpt"
    assert load_trained(kept / "checkpoints" / f"{best}.ckpt").record.image_size == 112


def test_an_evaluation_writes_its_classes(kept):
    folder = kept / "evaluation"
    table = pd.read_csv(folder / "per_class.csv", index_col="class")
    evaluation = json.loads((folder / "evaluate.json").read_text())
    for number, one in enumerate(evaluation["passes"], start=1):
        mean = (table[f"pass_{number}_top1"] * table["images"]).sum() / table["images"].sum()
        assert mean == pytest.approx(one["top1"], abs=0.01)
    matrix = pd.read_csv(folder / "confusion_matrix.csv", index_col="class")
    assert matrix.sum(axis=1).tolist() == table["images"].tolist()
    (point,) = (p for p in evaluation["operating_points"] if p["rule"] == "threshold")
    diagonal = sum(matrix.loc[name, name] for name in matrix.index)
    assert 100 * diagonal / table["images"].sum() == pytest.approx(point["top1"])
    assert Image.open(folder / "confusion_matrix.png").size[0] > 300


def test_learning_curves_on_the_page(kept, tmp_path):
    write_page([kept], tmp_path / "page.html", examples=0)
    text = (tmp_path / "page.html").read_text()
    section = text.partition('<section id="learning">')[2].partition("</section>")[0]
    assert "<svg" in section
    for title in ("loss (training)", "loss (validation)", "top-1 (%)"):
        assert title in section


def test_a_batch_as_the_model_gets_it(composed, tmp_path):
    settings = ("debug=show_batch", "augment=deit", "data.batch_size=8", f"run_dir={tmp_path}")
    train(composed("train", *(s for s in NEEDLE_FAST if "max_epochs" not in s), *settings))
    picture = Image.open(tmp_path / "batch.png")
    assert picture.size == (8 * 114 + 2, 114 + 2)
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 1
    assert len(picture.convert("L").getcolors(1000)) > 50


def test_weights_of_a_thousand_classes_have_the_names_of_imagenet(tmp_path, tiny):
    model = lfvit.create_model("vit", backbone=tiny, image_size=56, num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    said = {"method": {"name": "vit"}, "backbone": tiny, "image_size": 56}
    _, record = load_trained(tmp_path / "vit.pth", said)
    assert record.classes == readable_names(ImageNetInfo().label_names())
    assert record.classes[0] == "tench"

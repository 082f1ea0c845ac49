"""predict.py on files, folders and broken images."""

import json

import pytest
from PIL import Image

from conftest import NEEDLE_FAST, write_photographs
from lfvit.commands.predict import predict
from lfvit.commands.train import train
from lfvit.data.images import UnreadableImageError
from lfvit.errors import DataError


@pytest.fixture
def run(composed, trained_run, tmp_path):
    def run_predict(image, *overrides, checkpoint=None):
        checkpoint = checkpoint or trained_run / "checkpoints" / "last.ckpt"
        cfg = composed("predict", f"ckpt_path={checkpoint}", "accelerator=cpu", *overrides)
        cfg.image, cfg.run_dir = image, str(tmp_path / "out")
        return predict(cfg)

    return run_predict


def test_a_folder_of_awkward_photographs(run, photographs, tmp_path, capsys):
    found = run(str(photographs), "threshold=1.01")
    assert len(found) == 24
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == {"images": found, "num_skipped": 0}
    entry = found[0]
    assert [set(line) for line in entry["top"]] == [{"class", "probability"}] * 5
    assert entry["exit_pass"] == 2
    assert len(entry["region"]) == 2
    with Image.open(tmp_path / "out" / entry["picture"]) as picture:
        assert picture.width > 500
    assert ": pass 2, " in capsys.readouterr().out


def test_the_threshold_decides_who_answers_and_what_it_costs(run, photographs):
    image = str(photographs / "apple" / "00.jpg")
    (early,), (late,) = run(image, "threshold=0"), run(image, "threshold=1.01")
    assert early["exit_pass"] == 1
    assert early["gmacs"] < late["gmacs"]
    assert early["region"] == late["region"]


def test_several_files_without_pictures(run, photographs, tmp_path):
    files = [str(photographs / "apple" / name) for name in ("00.jpg", "01.png")]
    found = run(files, "pictures=false", "top=2")
    assert [entry["path"] for entry in found] == files
    assert [len(entry["top"]) for entry in found] == [2, 2]
    assert not list((tmp_path / "out").glob("*.png"))


def test_broken_images_stop_or_are_counted_and_nothing_is_lost(run, tmp_path, capsys):
    root = write_photographs(tmp_path / "photos", per_class=2)
    broken = root / "pear" / "00.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UnreadableImageError, match=r"pear/00\.jpg: not readable.*on_error=skip"):
        run(str(root))
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(written["images"]) == 2
    assert len(run(str(root), "on_error=skip")) == 5
    assert "5 images, 1 skipped" in capsys.readouterr().out


def test_one_pass_models(run, composed, photographs, tmp_path):
    train(composed("train", *NEEDLE_FAST, "method=vit", f"run_dir={tmp_path / 'vit'}"))
    checkpoint = tmp_path / "vit" / "checkpoints" / "last.ckpt"
    (entry,) = run(str(photographs / "apple" / "00.jpg"), checkpoint=checkpoint)
    assert entry["exit_pass"] == 1
    assert (tmp_path / "out" / entry["picture"]).exists()


def test_class_names_are_not_taken_for_formulas(tmp_path):
    import numpy as np
    import torch

    from lfvit.tracking.pictures import Prediction, draw_predictions

    image = np.zeros((16, 16, 3), dtype=np.uint8)
    one = Prediction(image, ["$5_{ to $9"], logits=torch.zeros(1, 1), exit_pass=0)
    draw_predictions([one], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


def test_other_weights_with_a_description(composed, photographs, tmp_path):
    import torch

    import lfvit

    model = lfvit.create_model(
        "vit", backbone="deit_tiny_patch16_224", num_classes=4, image_size=64
    )
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    cfg = composed(
        "predict",
        f"ckpt_path={tmp_path / 'plain.pth'}",
        f"image={photographs / 'apple' / '00.jpg'}",
        "method=vit",
        "backbone=deit_tiny",
        "image_size=64",
        "accelerator=cpu",
        f"run_dir={tmp_path / 'out'}",
    )
    (entry,) = predict(cfg)
    assert {line["class"] for line in entry["top"]} == {"0", "1", "2", "3"}


def test_nothing_to_predict(run, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        run(str(tmp_path / "nowhere.jpg"))

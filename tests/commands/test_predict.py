"""predict.py on files, folders and broken images."""

import json

import pytest
from PIL import Image

from conftest import write_photographs
from lfvit.commands.predict import predict
from lfvit.data.images import UnreadableImageError
from lfvit.errors import DataError


@pytest.fixture
def run(composed, trained_run, tmp_path):
    def run_predict(image, *overrides, checkpoint=None):
        checkpoint = checkpoint or trained_run / "checkpoints" / "last.ckpt"
        cfg = composed("predict", f"ckpt_path={checkpoint}", "accelerator=cpu", *overrides)
        cfg.overwrite = True
        cfg.image, cfg.run_dir = image, str(tmp_path / "out")
        return predict(cfg)

    return run_predict


def test_a_folder_of_photographs(run, trained_vit, photographs, tmp_path, capsys):
    """The threshold decides the exit pass and the cost, not the region."""
    late = run(str(photographs / "apple"), "threshold=1.01")
    assert len(late) == 8
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written == {"images": late, "num_skipped": 0}
    assert [set(line) for line in late[0]["top"]] == [{"class", "probability"}] * 5
    with Image.open(tmp_path / "out" / late[0]["picture"]) as picture:
        assert picture.width > 500
    printed = capsys.readouterr().out
    assert ": pass 2, " in printed
    unsure = sum(entry["top"][0]["probability"] < 0.5 for entry in late)
    assert printed.count("  unsure: this model knows 6 classes: ") == unsure > 0
    files = [entry["path"] for entry in late[:2]]
    early = run(files, "threshold=0", "pictures=false", "top=2")
    assert [(entry["path"], len(entry["top"])) for entry in early] == [(path, 2) for path in files]
    assert not any("picture" in entry for entry in early)
    for first, second in zip(early, late, strict=False):
        assert (first["exit_pass"], second["exit_pass"]) == (1, 2)
        assert first["gmacs"] < second["gmacs"]
        assert first["region"] == second["region"]
    (entry,) = run(files[0], checkpoint=trained_vit)
    assert (entry["exit_pass"], "region" in entry) == (1, False)
    assert (tmp_path / "out" / entry["picture"]).exists()


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
    with pytest.raises(DataError, match="no such file or folder"):
        run(str(tmp_path / "nowhere.jpg"))

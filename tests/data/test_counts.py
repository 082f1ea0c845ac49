"""What the log says of images that were read by a special rule, or not at all."""

import logging

import numpy as np
import pytest
import torch.distributed
from test_datamodule import fit
from test_decoding import rotated

from conftest import write_photographs
from lfvit.data import FolderDataModule
from lfvit.data.batches import Note
from lfvit.data.counts import ImageCounts
from lfvit.data.images import ALPHA, GREY, NOT_TURNED, TURNED


@pytest.fixture
def folder(tmp_path):
    """24 photographs in train, 3 of which cannot be read and 2 of which lie on their sides."""
    train = write_photographs(tmp_path / "train")
    write_photographs(tmp_path / "val", per_class=4)
    jpegs = sorted(train.glob("*/*.jpg")) + sorted(train.glob("*/*.jpeg"))
    jpegs[0].write_bytes(b"")
    jpegs[1].write_bytes(jpegs[1].read_bytes()[:-300])
    jpegs[2].write_bytes(b"<html>404</html>")
    for path in jpegs[3:5]:
        path.write_bytes(rotated(6))
    return tmp_path


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "lfvit.data.counts"]


@pytest.mark.parametrize("settings", [{"num_workers": 1}, {"cache": "device"}])
def test_every_image_is_counted_once_and_logged_by_kind(folder, settings, caplog):
    caplog.set_level(logging.INFO)
    data = FolderDataModule(
        root=str(folder), image_size=32, batch_size=6, on_error="skip", **settings
    )
    fit(data, epochs=3)
    found = data.reading.splits["train"].counts
    (said,) = (line for line in lines(caplog) if line.startswith("24 train images"))
    when = "decoded" if "cache" in settings else "by the end of epoch 0"
    assert said.startswith(f"24 train images, {when}: ")
    assert data.unreadable_images == len(data.reading.unreadable) == 3
    assert "3 unreadable: 1 empty, 1 not an image, 1 truncated; 2 with an EXIF rotation" in said
    assert found[NOT_TURNED] == 2
    assert found[GREY] == found[ALPHA] == 6  # in each class, L and LA; RGBA and LA


def test_turned_photographs_are_counted_as_such(folder, caplog):
    caplog.set_level(logging.INFO)
    data = FolderDataModule(
        root=str(folder), image_size=32, batch_size=6, on_error="skip", exif=True
    )
    fit(data, epochs=1)
    assert data.reading.splits["train"].counts[TURNED] == 2
    assert any("2 turned as EXIF says" in line for line in lines(caplog))


def test_processes_pool_their_counts(monkeypatch):
    others = ImageCounts(20)
    others.add([Note(3, GREY), Note(11, GREY), Note(19, "truncated")])
    theirs = {kind: np.packbits(found) for kind, found in others.found.items()}

    def gather(parts, mine):
        parts[:] = [mine, [theirs]]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    counts = ImageCounts(20)
    counts.add([Note(3, GREY), Note(4, GREY)])
    for _ in range(2):  # again, nothing is counted twice
        counts.gather()
        assert counts.counts == {"truncated": 1, GREY: 3}
        assert str(counts) == "1 unreadable: 1 truncated; 3 grey"


def test_nothing_special_is_nothing_to_say(tmp_path, caplog):
    counts = ImageCounts(3)
    assert str(counts) == ""
    assert counts.unreadable == 0

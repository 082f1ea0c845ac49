"""Data sets of the `datasets` library, made here: nothing is fetched."""

import io
import sys

import datasets
import numpy as np
import pytest

from conftest import photograph
from lfvit.data import HuggingFaceDataModule, huggingface
from lfvit.data.huggingface import open_huggingface
from lfvit.data.images import UnreadableImageError
from lfvit.errors import ConfigError, DataError

datasets.disable_progress_bars()
SPLITS = ("train", "validation")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def jpeg(seed):
    buffer = io.BytesIO()
    photograph((24, 20), seed, seed).save(buffer, "JPEG")
    return buffer.getvalue()


def rows(labels, feature=None, files=None):
    """A split with a file per label, as bytes; `files` replaces some of them."""
    feature = feature or datasets.ClassLabel(names=["cat", "dog", "eel"])
    images = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(len(labels))]
    for index, data in (files or {}).items():
        images[index] = data
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels, "id": list(range(len(labels)))},
        datasets.Features(
            {"image": datasets.Image(), "label": feature, "id": datasets.Value("int32")}
        ),
    )


def save(folder, train, val):
    datasets.DatasetDict({"train": train, "validation": val}).save_to_disk(str(folder))
    return str(folder)


def to_parquet(folder, **splits):
    """As on the hub."""
    (folder / "data").mkdir()
    for name, split in splits.items():
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")


def opened(path):
    return open_huggingface(path, None, *SPLITS, "image", "label")


@pytest.mark.parametrize("kind", ["saved", "parquet"])
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_become_batches(tmp_path, kind, workers):
    train, val = rows([0, 1, 2, 1]), rows([2, 1, 0])
    if kind == "saved":
        path = save(tmp_path / "set", train, val)
    else:
        path = str(tmp_path)
        to_parquet(tmp_path, train=train, validation=val)
    data = HuggingFaceDataModule(path=path, image_size=32, batch_size=2, num_workers=workers)
    data.setup()
    assert data.classes == ["cat", "dog", "eel"]
    assert data.train_images.targets == [0, 1, 2, 1]
    raw = list(data.val_dataloader())
    assert [len(batch.images) for batch in raw] == [2, 1]
    assert [t for batch in raw for t in batch.targets.tolist()] == [2, 1, 0]
    image, target, _ = data.val_images.draw(1)
    assert (image.size, target) == ((24, 20), 1)


def test_slices_of_one_split(tmp_path):
    to_parquet(tmp_path, train=rows([0, 1, 2, 1, 2, 0]))
    path = str(tmp_path)
    train, val = open_huggingface(path, None, "train[:50%]", "train[50%:]", "image", "label")
    assert (train.targets, val.targets) == ([0, 1, 2], [1, 2, 0])


def test_our_rules_of_decoding_apply(tmp_path, monkeypatch):
    """Alpha lies on white, and what cannot be read is named and skipped by us."""
    buffer = io.BytesIO()
    photograph((8, 8), 0, 0).convert("RGBA").point(lambda _: 0).save(buffer, "PNG")
    files = {
        0: {"bytes": b"<html>", "path": "lost.jpg"},
        1: {"bytes": buffer.getvalue(), "path": None},
        2: {"bytes": None, "path": str(tmp_path / "gone.jpg")},
        3: None,
    }
    monkeypatch.setattr(huggingface, "_load", lambda *_: rows([0] * 4, files=files))
    train, _ = opened("pets")
    assert np.asarray(train.draw(1)[0]).min() == 255
    for index, kind, message in (
        (0, "not an image", r"pets\[train\] row 0 \(lost\.jpg\): not readable"),
        (2, "missing", r"gone\.jpg: not readable"),
        (3, "missing", r"row 3: holds no image"),
    ):
        with pytest.raises(UnreadableImageError, match=message) as caught:
            train.draw(index)
        assert caught.value.kind == kind


def test_labels_without_names(tmp_path):
    text, number = datasets.Value("string"), datasets.Value("int64")
    path = save(tmp_path / "a", rows(["pear", "fig"], text), rows(["fig", "pear"], text))
    assert (opened(path)[0].classes, opened(path)[0].targets) == (["fig", "pear"], [1, 0])
    path = save(tmp_path / "b", rows([0, 1], number), rows([1, 0], number))
    assert opened(path)[1].targets == [1, 0]


def test_class_lists_that_differ_are_refused(tmp_path):
    def names(*names):
        return datasets.ClassLabel(names=list(names))

    turned = save(tmp_path / "a", rows([0], names("cat", "dog")), rows([0], names("dog", "cat")))
    with pytest.raises(DataError, match="same classes in another order: class 0 is 'cat' in train"):
        opened(turned)
    other = save(tmp_path / "b", rows([0], names("cat", "dog")), rows([0], names("cat", "cow")))
    with pytest.raises(DataError, match="'dog' is only in train and 'cow' is only in val"):
        opened(other)
    texts = datasets.Value("string")
    plain = save(tmp_path / "c", rows(["x", "y"], texts), rows(["x"], texts))
    with pytest.raises(DataError, match="'y' is only in train"):
        opened(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "class"}, r"has no column data\.label=class; it has image, label, id"),
        ({"image": "id"}, r"data\.image=id is a column of Value"),
        ({"val_split": "test"}, r"has no split 'test'; valid .*: train, validation"),
        ({"path": "DIR/nowhere"}, r"nowhere: split 'train' cannot be loaded; no such folder"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, settings, message, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = save(tmp_path / "set", rows([0, 1]), rows([1, 0]))
    settings = {"path": path, **settings}
    settings["path"] = settings["path"].replace("DIR", str(tmp_path))
    with pytest.raises(DataError, match=message):
        HuggingFaceDataModule(image_size=32, batch_size=2, **settings).setup()


def test_a_name_on_the_hub_without_a_network(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'somebody/pets' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"data\.path=somebody/pets: .*hub did not answer.*reach"):
        HuggingFaceDataModule(path="somebody/pets", image_size=32, batch_size=2).setup()


def test_hidden_labels_are_refused(tmp_path):
    path = save(tmp_path / "set", rows([0, 1]), rows([-1, -1]))
    with pytest.raises(DataError, match=r"\[validation\]: row 0 has no label"):
        opened(path)


def test_settings(monkeypatch):
    common = {"image_size": 32, "batch_size": 2}
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        HuggingFaceDataModule(path=None, **common).setup()
    with pytest.raises(ConfigError, match=r"data\.label_maps=maps belongs to"):
        HuggingFaceDataModule(path="x", label_maps="maps", **common)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[data\]'"):
        HuggingFaceDataModule(path="x", **common).setup()

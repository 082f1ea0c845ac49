"""Datasets of the `datasets` library and tar shards, made here: nothing is fetched."""

import io
import sys
import tarfile

import datasets
import numpy as np
import pytest
import torch
from test_datamodule import evaluate, folder

from conftest import photograph, write_shards
from lfvit.data import HuggingFaceDataset, ImageDataModule, huggingface
from lfvit.errors import DataError
from lfvit.utils.error_messages import error_message

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


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


def module(path, **settings):
    settings = {"image_size": 32, "batch_size": 2, "val_split": "validation", **settings}
    data = ImageDataModule(HuggingFaceDataset, path=path, **settings)
    data.setup()
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_become_batches(tmp_path, workers):
    path = save(tmp_path / "set", rows([0, 1, 2, 1]), rows([2, 1, 0]))
    data = module(path, num_workers=workers)
    assert data.classes == ["cat", "dog", "eel"]
    assert data.train_images.targets == [0, 1, 2, 1]
    assert [batch.targets.tolist() for batch in evaluate(data)] == [[2, 1], [0]]
    assert data.image_names()[1] == f"{path}[validation] row 1"


@pytest.mark.parametrize("kind", ["parquet", "saved splits", "saved alone"])
def test_slices_of_one_split(tmp_path, kind):
    images, path = rows([0, 1, 2, 1, 2, 0]), str(tmp_path / "data")
    if kind == "parquet":
        (tmp_path / "data").mkdir()
        images.to_parquet(f"{path}/train-00000-of-00001.parquet")
    elif kind == "saved splits":
        save(path, images, rows([0]))
    else:
        images.save_to_disk(path)
    data = module(path, train_split="train[:50%]", val_split="train[50%:]")
    assert (data.train_images.targets, data.val_images.targets) == ([0, 1, 2], [1, 2, 0])


def test_one_saved_dataset_is_split_by_class(tmp_path):
    rows([0] * 10 + [1] * 10 + [2] * 20).save_to_disk(str(tmp_path / "set"))
    data = module(str(tmp_path / "set"), seed=5)
    assert data.val_images.targets == [0, 1, 2, 2]
    held_out = set(data.image_names())
    assert held_out == set(module(str(tmp_path / "set"), seed=6).image_names())
    assert held_out != set(module(str(tmp_path / "set"), split_seed=1).image_names())
    train = {int(index) for index in data.train_images.indices}
    assert train | {int(index) for index in data.val_images.indices} == set(range(40))
    assert len(train) == 36
    whole = HuggingFaceDataset(
        "validation", train=False, path=str(tmp_path / "set"), val_fraction=1
    )
    assert len(whole) == 40


def test_our_rules_of_decoding_apply(tmp_path, monkeypatch):
    """Alpha is composited on white, and what cannot be read is named."""
    buffer = io.BytesIO()
    photograph((8, 8), 0, 0).convert("RGBA").point(lambda _: 0).save(buffer, "PNG")
    files = {
        0: {"bytes": b"<html>", "path": "lost.jpg"},
        1: {"bytes": buffer.getvalue(), "path": None},
        2: {"bytes": None, "path": str(tmp_path / "gone.jpg")},
        3: None,
    }
    monkeypatch.setattr(huggingface, "_load", lambda *_: (rows([0] * 4, files=files), False))
    samples = list(map(module("pets").val_dataset().__getitem__, range(4)))
    assert samples[1].pixels.min() == 255
    for index, message in ((0, "row 0: not readable"), (2, "gone.jpg: "), (3, "holds no image")):
        assert message in samples[index].errors[0]


def test_labels_without_names(tmp_path):
    text, number = datasets.Value("string"), datasets.Value("int64")
    path = save(tmp_path / "a", rows(["pear", "fig"], text), rows(["fig", "pear"], text))
    train = HuggingFaceDataset(path=path)
    assert (train.classes, train.targets) == (["fig", "pear"], [1, 0])
    path = save(tmp_path / "numbers", rows(["10", "9"], text), rows(["9"], text))
    assert HuggingFaceDataset(path=path).classes == ["9", "10"]
    path = save(tmp_path / "b", rows([0, 1], number), rows([1, 0], number))
    assert HuggingFaceDataset("validation", path=path).targets == [1, 0]
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    train = HuggingFaceDataset(path=path, classes=str(tmp_path / "names.txt"))
    assert train.classes == ["cat", "dog", "eel"]
    path = save(tmp_path / "c", rows([0, 2], number), rows([0, 3], number))
    with pytest.raises(DataError, match=r"up to 2, but no image has label 1; .*data\.classes=FILE"):
        HuggingFaceDataset(path=path)
    with pytest.raises(DataError, match=r"label 3 is none of the 3 classes \('cat' to 'eel'\)"):
        HuggingFaceDataset("validation", path=path, classes=str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match=r"data\.classes=nowhere\.txt: cannot be read"):
        HuggingFaceDataset(path=path, classes="nowhere.txt")


def test_class_lists_that_differ_are_refused(tmp_path):
    texts = datasets.Value("string")
    fewer = save(tmp_path / "c", rows(["x", "y"], texts), rows(["x"], texts))
    with pytest.raises(DataError, match="class 1 is 'y' in train but None in val"):
        module(fewer)
    hidden = save(tmp_path / "set", rows([0, 1]), rows([-1, -1]))
    with pytest.raises(DataError, match=r"\[validation\]: row 0 has no label"):
        module(hidden)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "class"}, r"has no column data\.label=class; it has image, label, id"),
        ({"image": "id"}, r"data\.image=id is a column of .*Value"),
        (
            {"val_split": "test"},
            r"Unknown split .test.\. Should be one of \['train', 'validation'\]",
        ),
        (
            {"path": "DIR/nowhere"},
            r"nowhere: split 'train' cannot be loaded .* data.train_split=NAME",
        ),
        ({"path": "somebody/pets"}, r"somebody/pets: split 'train' cannot be loaded"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path, settings, message):
    path = save(tmp_path / "set", rows([0, 1]), rows([1, 0]))
    settings = {"path": path, **settings}
    with pytest.raises(DataError, match=message):
        module(settings.pop("path").replace("DIR", str(tmp_path)), **settings)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError) as caught:
        HuggingFaceDataset(path="x")
    assert error_message(caught.value) == "datasets is not installed; pip install 'lfvit[data]'"


# --- tar shards ---------------------------------------------------------------------------------

SHARDS = {
    "path": "webdataset",
    "data_files": {"train": "train-*.tar", "val": "val-*.tar"},
    "val_split": "val",
    "image": "jpg",
    "label": "cls",
}


def test_shards_give_the_pixels_of_their_files(photographs, tmp_path):
    write_shards(photographs, tmp_path / "shards")
    data = module(root=str(tmp_path / "shards"), **SHARDS)
    assert data.classes == ["0", "1", "2"]
    assert len(data.val_images) == 24
    files = sorted(photographs.rglob("*.*"))
    files = [*files[::2], *files[1::2]]  # in the order of two shards
    source = folder(photographs, val_fraction=0.9).val_dataset()
    paths = source.images.paths
    for index in range(0, 24, 5):
        if files[index] in paths:
            expected = source[paths.index(files[index])]
            assert torch.equal(data.val_dataset()[index].pixels, expected.pixels)
    assert np.bincount(data.val_images.targets).tolist() == [8, 8, 8]


def test_labels_in_json(tmp_path):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as tar:
            for i, name in enumerate(("fig", "pear", "fig")):
                for suffix, data in (("jpg", jpeg(i)), ("json", f'{{"kind": "{name}"}}'.encode())):
                    member = tarfile.TarInfo(f"{i}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    data = module(root=str(tmp_path), **{**SHARDS, "label": "json.kind"})
    assert (data.classes, data.val_images.targets) == (["fig", "pear"], [0, 1, 0])


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.data_files\.train=train-\*\.tar: no such files in"):
        module(root=str(tmp_path), **SHARDS)

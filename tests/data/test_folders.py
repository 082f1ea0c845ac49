"""Image folders: layouts, held-out parts, and what is refused."""

import os
import shutil

import pytest
from PIL import Image

from lfvit.data import ImageFolder
from lfvit.data.classes import readable_names
from lfvit.data.folders import images_of
from lfvit.errors import DataError


def make(root, classes=("a", "b"), count=10):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(root / name / f"{i}.png")
    return root


def splits(root, **settings):
    return [ImageFolder(split, root=str(root), **settings) for split in ("train", "val")]


def test_a_folder_without_split_is_split_by_class(tmp_path):
    root = make(tmp_path / "x", count=20)
    train, val = splits(root, val_fraction=0.25, seed=3)
    assert train.classes == val.classes == ["a", "b"]
    assert [val.targets.count(t) for t in (0, 1)] == [5, 5]
    assert not set(train.paths) & set(val.paths)
    assert len(train) + len(val) == 40
    assert all(path.parent.name == "ab"[target] for path, target in val)
    assert val.name(0) == f"a/{val.paths[0].name}"
    assert splits(root, val_fraction=0.25, seed=3)[1].paths == val.paths
    assert splits(root, val_fraction=0.25, seed=4)[1].paths != val.paths


def test_every_class_keeps_and_holds_out_at_least_one(tmp_path):
    root = make(tmp_path / "x", count=2)
    for fraction in (0.01, 0.99):
        train, val = splits(root, val_fraction=fraction)
        assert [train.targets, val.targets] == [[0, 1], [0, 1]]


def test_imagenet_layout(tmp_path):
    make(tmp_path / "train")
    make(tmp_path / "val", count=3)
    train, val = splits(tmp_path)
    assert (len(train), len(val)) == (20, 6)
    assert val.name(0) == "val/a/0.png"
    make(tmp_path / "test", count=1)
    assert len(ImageFolder("test", root=str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, "no such folder; expected DIR/train"),
        (lambda root: root.mkdir(), "holds no class folders"),
        (lambda root: make(root / "train"), "has train/ but no val/"),
        (lambda root: make(root, classes=("train", "x")), "train: holds no class folders"),
        (lambda root: (make(root), (root / "empty").mkdir()), "empty: holds no images"),
        (lambda root: make(root, count=1), "class 'a' has one image"),
        (lambda root: make(root, classes=("a",)), "holds one class folder, 'a'; two or more"),
    ],
)
def test_folders_that_cannot_work_say_what_was_expected(tmp_path, build, message):
    build(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        splits(tmp_path / "root")


def test_hidden_files_and_folders_are_not_classes_or_images(tmp_path):
    root = make(tmp_path / "x")
    shutil.copytree(root / "a", root / ".cache")
    (root / "a" / "._0.png").write_bytes(b"x")
    train, val = splits(root)
    assert train.classes == ["a", "b"]
    assert len(train) + len(val) == 20


def test_links_in_a_circle_are_followed_once(tmp_path):
    root = make(tmp_path / "train", count=4)
    make(tmp_path / "val")
    (root / "a" / "deeper").mkdir()
    (root / "a" / "deeper" / "up").symlink_to(root / "a")
    (root / "b" / "self").symlink_to(".")
    shutil.move(root / "a" / "0.png", root / "a" / "deeper" / "0.PNG")
    (root / "b" / "lost.png").symlink_to("nowhere.png")  # listed, and named when it is read
    images = ImageFolder(root=str(tmp_path))
    assert [path.name for path in images.paths[:4]] == ["1.png", "2.png", "3.png", "0.PNG"]
    assert len(images) == 9


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """os.walk would pass over it, and its images would be missing unnoticed."""
    root, listing = make(tmp_path / "x"), os.scandir

    def refusing(path):
        if os.fspath(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return listing(path)

    (root / "b" / "deeper").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"b/deeper: cannot be listed \(Permission denied\)"):
        ImageFolder(root=str(root))


def test_wordnet_ids_become_words():
    assert readable_names(["n01440764", "apple"]) == ["tench", "apple"]
    assert readable_names(["salt, pepper", "salt, fine"]) == ["salt, pepper", "salt, fine"]
    bird, machine = readable_names(["n02012849", "n03126707"])
    assert bird != machine
    assert bird.startswith("crane")


def test_images_to_predict(tmp_path):
    root = make(tmp_path / "x", count=2)
    assert len(images_of(root)) == 4
    assert images_of(root / "a" / "0.png") == [root / "a" / "0.png"]
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "holds no images"), ("nowhere", "no such file")):
        with pytest.raises(DataError, match=message):
            images_of(tmp_path / path)

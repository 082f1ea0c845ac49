"""Image folders: layouts, held-out parts, and what is refused."""

import os
import shutil

import pytest
from PIL import Image

from lfvit.data import ImageFolder
from lfvit.data.classes import readable_names
from lfvit.data.images import images_of
from lfvit.errors import DataError


def make(root, classes=("a", "b"), count=10, suffix=".png"):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(root / name / f"{i}{suffix}", "PNG")
    return root


def splits(root, **settings):
    return [ImageFolder(split, root=str(root), **settings) for split in ("train", "val")]


def test_a_folder_without_split_is_split_by_class(tmp_path):
    root = make(tmp_path / "x", count=20)
    train, val = splits(root, val_fraction=0.25, split_seed=3)
    assert train.classes == val.classes == ["a", "b"]
    assert [val.targets.count(t) for t in (0, 1)] == [5, 5]
    assert not set(train.paths) & set(val.paths)
    assert (len(train) + len(val), val.num_total) == (40, 40)
    assert all(path.parent.name == "ab"[target] for path, target in val)
    assert val.name(0) == f"a/{val.paths[0].name}"
    assert splits(root, val_fraction=0.25, split_seed=3)[1].paths == val.paths
    assert splits(root, val_fraction=0.25, split_seed=4)[1].paths != val.paths
    assert list(map(len, splits(root))) == [36, 4]
    assert list(map(len, splits(root, val_fraction=1))) == [0, 40]
    root = make(tmp_path / "two of each class", count=2)  # one to learn from, one to be held out
    for fraction in (0.01, 0.99):
        assert [part.targets for part in splits(root, val_fraction=fraction)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("Train", "Test"),
        ("TRAIN", "Valid"),
        ("training", "testing"),
        ("train", "validation"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_set", "dev_set"),
        ("trainset", "testset"),
        ("train2017", "val2017"),
        ("images-train", "images-eval"),
    ],
)
def test_names_of_splits(tmp_path, train, val):
    make(tmp_path / train)
    make(tmp_path / val, count=3)
    images, validation = splits(tmp_path)
    assert (len(images), len(validation)) == (20, 6)
    assert validation.name(0) == f"{val}/a/0.png"
    assert images.classes == validation.classes == ["a", "b"]
    assert bool(validation.notes) == ("test" in val.lower())  # it says that it takes the test set


def test_validation_comes_before_test_and_any_folder_can_be_named(tmp_path):
    for count, name in enumerate(("train", "test", "valid", "more"), 1):
        make(tmp_path / name, count=count)
    sizes = [len(ImageFolder(s, root=str(tmp_path))) for s in ("train", "test", "val", "more")]
    assert sizes == [2, 4, 6, 8]
    assert splits(make(tmp_path / "x", classes=("bus", "train")))[0].classes == ["bus", "train"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: None, "no such folder; expected DIR/train"),
        (lambda root: root.mkdir(), "holds no class folders"),
        (lambda root: make(root / "train"), "has train/ but no val/"),
        (lambda root: make(root / "Test"), "has Test/ but no train/"),
        (lambda root: make(root, classes=("train", "val")), "train: holds no class folders"),
        (
            lambda root: [make(root / name) for name in ("train", "testing", "test2")],
            "test2 and testing could both be 'val'; .* data.val_split=NAME",
        ),
        (lambda root: (make(root), (root / "empty").mkdir()), "empty: holds no images; remove"),
        (lambda root: make(root, suffix=".heic"), r"a: holds no images \(10 .heic\)"),
        (lambda root: make(root, count=1), "class 'a' has one image"),
        (lambda root: make(root, classes=("a",)), "holds one class folder, 'a'; two or more"),
    ],
)
def test_folders_that_cannot_work_say_what_was_expected(tmp_path, build, message):
    build(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        splits(tmp_path / "root")


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".avif", ".jp2", ".pgm", ""])
def test_images_of_any_suffix_count_and_other_files_are_counted(tmp_path, suffix):
    root = make(tmp_path, suffix=suffix)
    for name in ("a/notes.txt", "a/list", "b/photo.heic", "b/.hidden", "a/._0.png"):
        (root / name).write_text("no image")
    shutil.copytree(root / "a", root / ".cache")
    train, val = splits(root)
    assert train.classes == ["a", "b"]
    assert len(train) + len(val) == 20
    assert train.notes == val.notes
    assert "passed over 3 other files" in train.notes[0]
    assert all(f"1 {kind}" in train.notes[0] for kind in (".txt", ".heic", "without suffix"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("10", "9", "2"), ["2", "9", "10"]),
        (("010", "9", "100"), ["9", "010", "100"]),
        (("10", "9", "x"), ["10", "9", "x"]),
    ],
)
def test_whole_numbers_are_sorted_as_numbers(tmp_path, names, expected):
    train, _ = splits(make(tmp_path, classes=names))
    assert train.classes == expected
    assert all(path.parent.name == expected[target] for path, target in train)


def test_names_that_are_not_utf8_survive_as_text(tmp_path):
    root = make(tmp_path / "x", classes=("a", os.fsdecode(b"caf\xe9")))
    shutil.move(root / "a" / "0.png", root / "a" / os.fsdecode(b"\xff.png"))
    images = ImageFolder("val", root=str(root), val_fraction=1)
    assert images.classes == ["a", r"caf\xe9"]
    assert r"a/\xff.png" in [images.name(i) for i in range(len(images))]
    root = root.rename(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(DataError, match=r"\\xff: its name is not UTF-8; rename it"):
        ImageFolder(root=str(root))


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
    assert readable_names(["n01440764", "salt, fine"]) == ["tench", "salt, fine"]
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

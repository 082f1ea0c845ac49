"""Tar shards: WebDataset's samples, each exactly once, and damage named by shard and place."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
import webdataset

from conftest import photograph, write_photographs
from lfvit.data import FolderDataModule, ShardDataModule, shard_index
from lfvit.data.folders import open_folder
from lfvit.data.images import UnreadableImageError
from lfvit.data.shard_index import scan, split_name
from lfvit.data.shards import expand, main, open_shards
from lfvit.errors import ConfigError, DataError

PATTERNS = ("train-*.tar", "val-*.tar")


@pytest.fixture(autouse=True)
def index_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lfvit" / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three classes of awkward photographs in shards of five, and the folder they come from."""
    base = tmp_path_factory.mktemp("shards")
    folder = write_photographs(base / "folder")
    main([str(folder), str(base / "out"), "--shard-size", "5", "--val-fraction", "0.25"])
    return folder, base / "out"


def jpeg(seed=0):
    buffer = io.BytesIO()
    photograph((24, 20), seed, seed).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, members):
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def samples(labels, start=0):
    """Members of one image and its label each."""
    return [
        member
        for i, label in enumerate(labels, start)
        for member in ((f"s{i:03d}.jpg", jpeg(i)), (f"s{i:03d}.cls", str(label).encode()))
    ]


def pair(root, train, val, **more):
    write(root / "train-0.tar", samples(train))
    write(root / "val-0.tar", samples(val, 50))
    return open_shards(root, *PATTERNS, **more)


def test_a_folder_comes_back_from_its_shards(shards):
    folder, out = shards
    expected = open_folder(folder, 0.25)
    for found, split in zip(open_shards(out, *PATTERNS), expected, strict=True):
        assert found.classes == split.classes == ["apple", "pear", "plum"]
        pixels = {
            (np.asarray(image).tobytes(), target)
            for image, target, _ in (found.draw(i) for i in range(len(found)))
        }
        assert len(found) == len(split) == len(pixels)
        assert pixels == {
            (np.asarray(image).tobytes(), target)
            for image, target, _ in (split.draw(i) for i in range(len(split)))
        }


def test_webdataset_reads_what_we_write(shards):
    _, out = shards
    ours = open_shards(out, *PATTERNS)[0]
    theirs = [s for p in ours.paths for s in webdataset.WebDataset(str(p), shardshuffle=False)]
    assert len(theirs) == len(ours)
    for i, sample in enumerate(theirs):
        name = ours.name(i)
        assert ours.read(i) == sample[name.rpartition(".")[2]]
        assert int(sample["cls"]) == ours.targets[i]
        assert name.rpartition(":")[2].startswith(sample["__key__"] + ".")


def test_we_read_what_webdataset_writes(tmp_path):
    images = [photograph((20, 30), i, i) for i in range(6)]
    for split in ("train", "val"):
        with webdataset.ShardWriter(str(tmp_path / f"{split}-%03d.tar"), maxcount=4) as sink:
            for i, image in enumerate(images):
                sink.write({"__key__": f"a/b{i}", "png": image, "cls": i % 3, "json": {"x": i}})
    train, _ = open_shards(tmp_path, *PATTERNS)
    assert train.targets == [0, 1, 2, 0, 1, 2]
    assert train.classes == ["0", "1", "2"]
    for i, image in enumerate(images):
        assert np.array_equal(train.draw(i)[0], image)


def test_names_are_split_as_webdataset_splits_them():
    names = ["a.jpg", "a/b.c.seg.PNG", "a.b/c.jpg", "a/b/c", "../x.jpg", "/etc/x.JPEG", "a..jpg"]
    for name in names:
        key, suffix = webdataset.tariterators.base_plus_ext(name)
        assert split_name(name) == (None if key is None else (key, suffix.lower()))
    assert split_name("a/._x.jpg") is split_name(".x.jpg") is None


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_in_two_processes_is_exact(shards, workers, monkeypatch):
    """Every validation image once; training images as often as one process would show them."""
    folder, out = shards
    seen = {"val": [], "train": []}
    for rank in range(2):
        monkeypatch.setattr(ShardDataModule, "_rank", rank)
        monkeypatch.setattr(ShardDataModule, "_world_size", 2)
        data = ShardDataModule(root=str(out), image_size=32, batch_size=3, num_workers=workers)
        data.setup()
        for split in seen:
            loader = data.train_dataloader() if split == "train" else data.val_dataloader()
            seen[split] += [image.numpy().tobytes() for raw in loader for image in raw.images]
    whole = FolderDataModule(root=str(folder), image_size=32, batch_size=1, val_fraction=0.25)
    whole.setup()
    expected = [raw.images[0].numpy().tobytes() for raw in whole.val_dataloader()]
    assert sorted(seen["val"]) == sorted(expected)
    assert len(seen["train"]) == len(set(seen["train"])) == len(whole.train_images) == 18


def test_the_index_is_read_once_and_anew_when_a_shard_changes(shards, index_folder, monkeypatch):
    _, out = shards
    first = open_shards(out, *PATTERNS)
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "scan", None)
        again = open_shards(out, *PATTERNS)
    assert again[0].targets == first[0].targets
    assert [again[0].name(i) for i in range(5)] == [first[0].name(i) for i in range(5)]
    for file in index_folder.glob("*.npz"):  # cut short by a full disk: made anew
        file.write_bytes(file.read_bytes()[:200])
    assert open_shards(out, *PATTERNS)[0].targets == first[0].targets


def test_a_changed_shard_is_indexed_anew(tmp_path):
    assert pair(tmp_path, [0, 1], [0, 1])[0].targets == [0, 1]
    assert pair(tmp_path, [1, 0, 1], [0, 1])[0].targets == [1, 0, 1]


def test_an_index_that_cannot_be_kept_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(pair(tmp_path, [0, 1], [0, 1])[0]) == 2
    assert "cannot be kept" in caplog.text


def test_a_truncated_shard_is_refused_wherever_it_is_cut(tmp_path):
    path = write(tmp_path / "x.tar", samples([0, 1, 2]))
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE  # here the end mark begins
    data = path.read_bytes()
    for cut in [*range(0, end + tarfile.BLOCKSIZE, 128), end - 1, end + 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"x\.tar: (truncated.* at byte \d|not a plain tar)"):
            scan(path, "cls")
    path.write_bytes(data[: end + tarfile.BLOCKSIZE])
    assert len(scan(path, "cls")[0]) == 3


def test_other_damage_is_refused(tmp_path):
    path = write(tmp_path / "x.tar", samples([0, 1, 2]))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        header = tar.getmembers()[2].offset
    path.write_bytes(data[:header] + b"x" + data[header + 1 :])
    with pytest.raises(DataError, match=rf"damaged at byte {header}"):
        scan(path, "cls")
    path.write_bytes(data + data)
    with pytest.raises(DataError, match="joined together"):
        scan(path, "cls")
    path.write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="compressed; unpack it"):
        scan(path, "cls")


def test_links_folders_and_unsafe_names(tmp_path, caplog):
    """Nothing is extracted, so a name is only a name; what is no file is counted."""
    for split in ("train", "val"):
        names = [("../../up.jpg", jpeg()), ("../../up.cls", b"0"), ("/etc/a.jpg", jpeg(1))]
        path = write(tmp_path / f"{split}-0.tar", [*names, ("/etc/a.cls", b"1"), ("b.txt", b"")])
        with tarfile.open(path, "a") as tar:
            for name, kind in (("l.jpg", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
                about = tarfile.TarInfo(name)
                about.type, about.linkname = kind, "/etc/passwd"
                tar.addfile(about)
            about.name, about.type = "n.jpg", tarfile.CHRTYPE
            tar.addfile(about)
    train, _ = open_shards(tmp_path, *PATTERNS)
    assert [train.name(i).rpartition(":")[2] for i in range(2)] == ["../../up.jpg", "/etc/a.jpg"]
    assert len(train) == 2
    assert "2 links, devices and hidden files ignored" in caplog.text
    assert "1 samples without an image ignored" in caplog.text


def test_labels_are_indices_names_or_json_fields(tmp_path):
    train, val = pair(tmp_path / "names", ["pear", "apple"], ["apple", "pear"])
    assert (train.classes, train.targets, val.targets) == (["apple", "pear"], [1, 0], [0, 1])
    (tmp_path / "names" / "classes.txt").write_text("pear\napple\nplum\n")
    train, val = open_shards(tmp_path / "names", *PATTERNS)
    assert (train.classes, train.targets) == (["pear", "apple", "plum"], [0, 1])
    for split in ("train", "val"):
        members = [
            (f"{i}.{kind}", data)
            for i in range(2)
            for kind, data in (
                ("json", json.dumps({"label": i}).encode()),
                ("jpg", jpeg(i)),
            )
        ]
        write(tmp_path / "json" / f"{split}-0.tar", members)
    (tmp_path / "json" / "names.json").write_text('{"cat": 1, "dog": 0}')
    train, _ = open_shards(tmp_path / "json", *PATTERNS, "json:label", "names.json")
    assert (train.classes, train.targets) == (["dog", "cat"], [0, 1])
    with pytest.raises(DataError, match=r"0\.json holds no label data\.label=json:name \(KeyError"):
        open_shards(tmp_path / "json", *PATTERNS, "json:name")


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["a", "b"], ["a", "c"], "different classes; 'b' is only in train and 'c' is only in val"),
        ([0, 1, 2], [0, 1], r"'2' is only in train \(1 differ in all\)"),
        ([0, 2], [0, 2], "labels go up to 2, but no image has label 1"),
        ([0, -1], [0, 1], "different classes; '-1' is only in train"),
    ],
)
def test_class_lists_that_differ_are_refused(tmp_path, train, val, message):
    with pytest.raises(DataError, match=message):
        pair(tmp_path, train, val)


def test_labels_outside_the_list_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="val has label '7', which is none of the 2 classes"):
        pair(tmp_path, [0, 1], [0, 7])
    for text, message in (("a\na\n", "'a' occurs twice"), ("", "empty")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            open_shards(tmp_path, *PATTERNS)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b""), ("a.txt", b"0")], r"a\.jpg has no \.cls beside it \(only \.jpg, \.txt\)"),
        ([("a.jpg", b""), ("a.png", b"")], "a sample with two images, a.jpg and a.png"),
        ([("a.jpg", b""), ("a.JPG", b"")], r"a\.jpg is there twice"),
        ([("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"0")], "a.jpg has no .cls beside it"),
        ([("a.cls", b"0")], "hold no images"),
        ([("a.jpg", b""), ("a.cls", b"\n")], r"a\.cls holds no label .*it is empty"),
    ],
)
def test_samples_that_are_not_whole(tmp_path, members, message):
    write(tmp_path / "train-0.tar", members)
    write(tmp_path / "val-0.tar", members)
    with pytest.raises(DataError, match=message):
        open_shards(tmp_path, *PATTERNS)


def test_rows_of_shards(tmp_path):
    assert expand("a-{098..101}.tar") == [f"a-{n:03d}.tar" for n in (98, 99, 100, 101)]
    for number in range(3):
        write(tmp_path / f"a-{number:03d}.tar", samples([number, number]))
    with pytest.raises(DataError, match=r"data\.val=.* both name .*a-000\.tar"):
        open_shards(tmp_path, "a-{000..002}.tar", "a-00?.tar")
    with pytest.raises(DataError, match=r"data\.train=.*1 missing, first .*a-003\.tar"):
        open_shards(tmp_path, "a-{000..003}.tar", "a-00?.tar")
    with pytest.raises(DataError, match=r"data\.val=v-\*\.tar: no such shards"):
        open_shards(tmp_path, "a-*.tar", "v-*.tar")
    with pytest.raises(DataError, match=r"data\.root=.*nowhere: no such folder"):
        open_shards(tmp_path / "nowhere", "a", "b")


def test_an_image_beyond_the_end_of_its_shard_is_unreadable(tmp_path):
    train, _ = pair(tmp_path, [0, 1, 1], [0, 1])
    path = tmp_path / "train-0.tar"
    path.write_bytes(path.read_bytes()[: int(train.index.offsets[2]) + 5])
    with pytest.raises(UnreadableImageError, match=r"train-0\.tar:s002\.jpg: .*ends at") as caught:
        train.read(2)
    assert caught.value.kind == "truncated"


def test_label_maps_and_caches(shards):
    _, out = shards
    common = {"root": str(out), "image_size": 32, "batch_size": 3}
    with pytest.raises(ConfigError, match=r"data\.label_maps=maps belongs to .*data=imagefolder"):
        ShardDataModule(label_maps="maps", **common)
    plain, cached, reduced = (
        ShardDataModule(**common, **more)
        for more in ({}, {"cache": "device"}, {"reduced_decode": True})
    )
    batches = []
    for data in (plain, cached, reduced):
        data.setup()
        raw = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
        batches.append(torch.cat([b.images for b in raw]))
    assert torch.equal(batches[0], batches[1])
    torch.testing.assert_close(batches[0], batches[2], atol=0.2, rtol=0)


def test_converting_refuses_what_it_would_overwrite(shards, capsys, tmp_path):
    folder, out = shards
    for arguments, message in (
        ([folder, out], "is not empty"),
        ([tmp_path / "nowhere", tmp_path / "new"], "no such folder"),
        ([folder, tmp_path / "new", "--shard-size", "0"], "--shard-size 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        assert message in capsys.readouterr().err

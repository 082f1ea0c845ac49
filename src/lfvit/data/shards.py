"""Photographs in tar shards, named as WebDataset names them, each read from its place.

A shard is not streamed: an index says where every image lies, and an image is one read. So an
epoch is exact in any number of processes, its order depends on the seed alone, and a run resumes
anywhere. This wants shards on a file system; copy those of an object store to a disk first.

Write shards from folders of photographs:

    python -m lfvit.data.shards DIR OUT [--shard-size 5000] [--val-fraction 0.1]
"""

import argparse
import glob
import io
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from lfvit.data.classes import number_labels, read_classes
from lfvit.data.folders import ImageFolder, open_folder
from lfvit.data.images import WHOLE, Decoding, UnreadableImageError, decode
from lfvit.data.shard_index import Index, index_shards
from lfvit.errors import ConfigError, DataError, LFViTError

OPEN_FILES = 128  # that a process keeps open; systems often allow 1024


@dataclass(frozen=True)
class ShardSet:
    """Images in shards, with their classes.

    classes: names. targets: a class index per image. paths: of the shards. index: where each image
    lies. decoding: how files become pixels.
    """

    classes: list[str]
    targets: list[int]
    paths: list[Path]
    index: Index
    decoding: Decoding = WHOLE

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """SHARD:MEMBER, as tar's own tools would say it."""
        member = self.index.names[index].decode("utf-8", "backslashreplace")
        return f"{self.paths[self.index.shards[index]]}:{member}"

    def draw(self, index: int) -> tuple[Image.Image, int, None]:
        """The image, its class index, and no box.

        Raises:
            UnreadableImageError: naming shard and member.
        """
        return decode(self.read(index), self.name(index), self.decoding), self.targets[index], None

    def read(self, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
            UnreadableImageError: the shard has gone, or is shorter than it was.
        """
        shard, offset, size = (int(part[index]) for part in self.index[2:5])
        try:
            data = os.pread(_opened(self.paths[shard]).number, size, offset)
        except OSError as error:
            kind = "missing" if isinstance(error, FileNotFoundError) else "read error"
            raise UnreadableImageError(
                f"{self.name(index)}: not readable ({error.strerror})", kind
            ) from error
        if len(data) < size:
            raise UnreadableImageError(
                f"{self.name(index)}: not readable (the shard ends at byte {offset + len(data)}, "
                f"the image at {offset + size})",
                "truncated",
            )
        return data


class _Opened:
    """A file open for reading, until nobody needs it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path) -> _Opened:
    return _Opened(path)


def open_shards(
    root: str | Path,
    train: str | Sequence[str],
    val: str | Sequence[str],
    label: str = "cls",
    class_file: str | None = None,
) -> tuple[ShardSet, ShardSet]:
    """Training and validation images of a folder of shards.

    Args:
        root: the folder.
        train, val: names of shards, see `find_shards`.
        label: where the class of an image is: the suffix of a member beside it that holds the class
            index or name as text, such as cls; or json:FIELD, a field of a member with that suffix.
        class_file: names of the classes, see `read_classes`; None for classes.txt or classes.json
            in `root`, where there is one. Without names, numbers or the labels themselves.

    Raises:
        DataError: no shards, damaged ones, labels that fit no class, classes that only training or
            only validation has.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={root}: no such folder; expected one of tar files")
    paths = find_shards(root, "train", train), find_shards(root, "val", val)
    both = set(paths[0]) & set(paths[1])
    if both:
        raise DataError(f"data.train={train} and data.val={val} both name {min(both)}")
    indices = [index_shards(some, label) for some in paths]
    classes, *targets = number_labels(
        f"data.root={root}", indices[0].labels, indices[1].labels, _declared(root, class_file)
    )
    return (
        ShardSet(classes, targets[0], paths[0], indices[0]),
        ShardSet(classes, targets[1], paths[1], indices[1]),
    )


def find_shards(root: Path, split: str, names: str | Sequence[str]) -> list[Path]:
    """The shards of a split, in order.

    Args:
        root: folder.
        split: the setting they come from.
        names: in the folder or absolute, with * and ?, or with {000..123}, of which every one has
            to be there; one, or several.

    Raises:
        DataError: no shards, or one of a numbered row that is missing.
    """
    found: list[Path] = []
    for pattern in [names] if isinstance(names, str) else names:
        for name in expand(pattern):
            matches = sorted(glob.glob(str(root / name))) if glob.has_magic(name) else [root / name]
            found += [Path(match) for match in matches]
    if not found:
        raise DataError(f"data.{split}={names}: no such shards in {root}")
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise DataError(f"data.{split}={names}: {len(missing)} missing, first {missing[0]}")
    return list(dict.fromkeys(found))


def expand(pattern: str) -> list[str]:
    """train-{000..002}.tar -> train-000.tar, train-001.tar, train-002.tar."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    return [
        pattern[: match.start()] + f"{number:0{len(first)}d}" + rest
        for number in range(int(first), int(last) + 1)
        for rest in expand(pattern[match.end() :])
    ]


def _declared(root: Path, class_file: str | None) -> list[str] | None:
    if class_file is not None:
        return read_classes(root / Path(class_file).expanduser())
    there = [path for name in ("classes.txt", "classes.json") if (path := root / name).is_file()]
    return read_classes(there[0]) if there else None


def write_shards(images: ImageFolder, out: Path, split: str, shard_size: int) -> int:
    """Write a split's shards: out/SPLIT-000000.tar and so on, of `shard_size` images each.

    The images of a shard are of all classes. A member is called CLASS/NUMBER_NAME, so that files
    whose names differ only after the first dot stay different samples.

    Returns:
        How many shards.
    """
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    starts = range(0, len(order), shard_size)
    for number, start in enumerate(track(starts, f"writing {split} shards")):
        path = out / f"{split}-{number:06d}.tar"
        part = path.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for index in order[start : start + shard_size]:
                file, target = images.paths[index], images.targets[index]
                stem = file.name.partition(".")[0]
                key = f"{images.classes[target]}/{index:08d}_{stem}"
                _add(tar, f"{key}{file.suffix.lower()}", file.read_bytes())
                _add(tar, f"{key}.cls", str(target).encode())
        os.replace(part, path)
    return len(starts)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write shards, and classes.txt beside them, from a folder of photographs."""
    parser = argparse.ArgumentParser(prog="python -m lfvit.data.shards", description=main.__doc__)
    parser.add_argument("root", help="DIR/train and DIR/val, or one folder per class")
    parser.add_argument("out", help="an empty folder, or a new one")
    parser.add_argument("--shard-size", type=int, default=5000, help="images in a shard")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="of a folder without split")
    said = parser.parse_args(arguments)
    out = Path(said.out).expanduser()
    try:
        if said.shard_size < 1:
            raise ConfigError(f"--shard-size {said.shard_size}: must be 1 or more")
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out}: is not empty")
        splits = open_folder(said.root, said.val_fraction)
        out.mkdir(parents=True, exist_ok=True)
        for split, images in zip(("train", "val"), splits, strict=True):
            count = write_shards(images, out, split, said.shard_size)
            print(f"{split}: {len(images)} images in {count} shards")
        (out / "classes.txt").write_text("\n".join(splits[0].classes) + "\n")
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

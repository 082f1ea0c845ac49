"""Folders of photographs: one folder per class, with or without a train/val split."""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo

from lfvit.checks import check_range
from lfvit.data.images import EXTENSIONS, read_image
from lfvit.errors import DataError

LAYOUTS = "DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg"


@dataclass(frozen=True)
class ImageFolder:
    """Images on disk with their classes; nothing is decoded before `draw`.

    classes: folder names, sorted. paths and targets: one entry per image, class by class.
    shorter_side: how small a JPEG may be decoded, see `read_image`.
    """

    classes: list[str]
    paths: list[Path]
    targets: list[int]
    shorter_side: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def draw(self, index: int) -> tuple[Image.Image, int, None]:
        """The image, its class index, and no box.

        Raises:
            UnreadableImageError: naming the file.
        """
        return read_image(self.paths[index], self.shorter_side), self.targets[index], None

    def subset(self, indices: list[int]) -> "ImageFolder":
        """Some of the images, in the given order, with the same classes."""
        return replace(
            self,
            paths=[self.paths[i] for i in indices],
            targets=[self.targets[i] for i in indices],
        )


def open_folder(
    root: str | Path, val_fraction: float = 0.1, seed: int = 0
) -> tuple[ImageFolder, ImageFolder]:
    """Training and validation images of a folder.

    Args:
        root: a folder with train/ and val/, or one folder of classes.
        val_fraction: of a folder without a split, the share of every class that is held out (at
            least one image), chosen by `seed`.

    Raises:
        DataError: missing or empty folder, train/ without val/, classes that differ between the
            two, a class with too few images to hold one out.
        ConfigError: val_fraction outside (0, 1).
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={root}: no such folder; expected {LAYOUTS}")
    splits = [name for name in ("train", "val") if (root / name).is_dir()]
    if not splits:
        return _hold_out(scan(root), val_fraction, seed)
    if len(splits) == 1:
        other = "val" if splits == ["train"] else "train"
        raise DataError(f"data.root={root}: has {splits[0]}/ but no {other}/; expected {LAYOUTS}")
    train, val = scan(root / "train"), scan(root / "val")
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        where = "train" if only[0] in train.classes else "val"
        raise DataError(
            f"data.root={root}: train/ and val/ hold different classes; {only[0]!r} is only in "
            f"{where}/ ({len(only)} differ in all)"
        )
    return train, val


def scan(folder: Path) -> ImageFolder:
    """All images below the class folders of `folder`, sorted by path.

    Raises:
        DataError: no class folders, or one without images.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: holds no class folders; expected {LAYOUTS}")
    if len(names) < 2:
        raise DataError(f"{folder}: holds one class folder, {names[0]!r}; two or more are needed")
    paths: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(names):
        found = sorted(_images_below(folder / name))
        if not found:
            raise DataError(
                f"{folder / name}: holds no images ({', '.join(sorted(EXTENSIONS))}); remove the "
                "folder or fill it"
            )
        paths += found
        targets += [target] * len(found)
    return ImageFolder(names, paths, targets)


def images_of(path: str | Path) -> list[Path]:
    """One image file, or all images below a folder, sorted.

    Raises:
        DataError: nothing there.
    """
    path = Path(path).expanduser()
    found = [path] if path.is_file() else sorted(_images_below(path)) if path.is_dir() else []
    if not found:
        what = "holds no images" if path.is_dir() else "no such file or folder"
        raise DataError(f"image={path}: {what}")
    return found


def readable_names(classes: list[str]) -> list[str]:
    """ImageNet's words for folders named after its WordNet ids; other names as they are."""
    words = _imagenet_words()
    short = [words[name].split(",")[0] if name in words else name for name in classes]
    # a crane is a bird and a machine: tell them apart by their folders
    return [
        f"{word} ({name})" if short.count(word) > 1 else word
        for name, word in zip(classes, short, strict=True)
    ]


@cache
def _imagenet_words() -> dict[str, str]:
    info = ImageNetInfo()
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def _images_below(folder: Path) -> list[Path]:
    return [
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
    ]


def _hold_out(images: ImageFolder, fraction: float, seed: int) -> tuple[ImageFolder, ImageFolder]:
    check_range("data.val_fraction", fraction, 0, 1, above=True, below=True)
    targets = np.asarray(images.targets)
    rng = np.random.default_rng([seed, len(images)])
    held: list[int] = []
    for target, name in enumerate(images.classes):
        members = np.flatnonzero(targets == target)
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has one image; two are needed, one to train on and one held out"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held += rng.permutation(members)[:count].tolist()
    kept = sorted(set(range(len(images))) - set(held))
    return images.subset(kept), images.subset(sorted(held))

"""Folders of photographs: one folder per class, with or without a train/val split."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lfvit.data.classes import check_same_classes
from lfvit.data.images import EXTENSIONS, WHOLE, Decoding, read_image
from lfvit.errors import DataError
from lfvit.utils.validation import check_range

LAYOUTS = "DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg"


@dataclass(frozen=True)
class ImageFolder:
    """Images on disk with their classes; nothing is decoded before `draw`.

    classes: folder names, sorted. paths and targets: one entry per image, class by class.
    decoding: how files become pixels.
    """

    classes: list[str]
    paths: list[Path]
    targets: list[int]
    decoding: Decoding = WHOLE

    def __len__(self) -> int:
        return len(self.paths)

    def draw(self, index: int) -> tuple[Image.Image, int, None]:
        """The image, its class index, and no box.

        Raises:
            UnreadableImageError: naming the file.
        """
        return read_image(self.paths[index], self.decoding), self.targets[index], None

    def name(self, index: int) -> str:
        """What messages call the image."""
        return str(self.paths[index])

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
    check_same_classes(f"data.root={root}", train.classes, val.classes)
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


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and the folders in it; every folder once, though links make loops."""
    found: list[Path] = []
    seen = {_identity(folder)}
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        found += [
            Path(parent) / name
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
        ]
        inside = {name: _identity(Path(parent) / name) for name in sorted(folders)}
        folders[:] = []  # os.walk goes into what is left here
        for name, identity in inside.items():
            if identity not in seen:
                seen.add(identity)
                folders.append(name)
    return found


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _identity(folder: Path) -> tuple[int, int]:
    """The same for two names of one folder."""
    about = folder.stat()
    return about.st_dev, about.st_ino


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

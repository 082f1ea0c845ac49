"""Folders of photographs: one folder per class, with or without a train/val split."""

import os
from pathlib import Path

import numpy as np

from lfvit.data.images import EXTENSIONS
from lfvit.errors import DataError

LAYOUTS = "DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg"


class ImageFolder:
    """The images of one split of a folder; nothing is decoded here.

    Args:
        split: "train", "val" or another folder of `root`.
        root: a folder with train/ and val/, or one folder of classes, of which a part is held out
            for "val".
        val_fraction: the share of every class that is held out, at least one image.
        seed: of the choice of held-out images.

    Attributes:
        classes: folder names, sorted.
        paths, targets: of every image, class by class.
        folder: the one that holds the class folders.

    Raises:
        DataError: missing or empty folder, train/ without val/, a class with too few images to
            hold one out.
    """

    def __init__(
        self, split: str = "train", *, root: str, val_fraction: float = 0.1, seed: int = 0
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"data.root={self.root}: no such folder; expected {LAYOUTS}")
        present = [name for name in dict.fromkeys((split, "train", "val")) if self._has(name)]
        if present and split not in present:
            raise DataError(
                f"data.root={self.root}: has {present[0]}/ but no {split}/; expected {LAYOUTS}"
            )
        self.folder = self.root / split if present else self.root
        self.classes, self.paths, self.targets = scan(self.folder)
        if not present:
            held_out = self._held_out(val_fraction, seed)
            keep = np.flatnonzero(~held_out if split == "train" else held_out)
            self.paths = [self.paths[i] for i in keep]
            self.targets = [self.targets[i] for i in keep]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        return self.paths[index], self.targets[index]

    def name(self, index: int) -> str:
        """The path below `root`, the same on every machine."""
        return self.paths[index].relative_to(self.root).as_posix()

    def _has(self, split: str) -> bool:
        return (self.root / split).is_dir()

    def _held_out(self, fraction: float, seed: int) -> np.ndarray:
        """(n,) bool, True for the images of "val"."""
        targets = np.asarray(self.targets)
        rng = np.random.default_rng([seed, len(targets)])
        held_out = np.zeros(len(targets), dtype=bool)
        for target, name in enumerate(self.classes):
            members = np.flatnonzero(targets == target)
            if len(members) < 2:
                raise DataError(
                    f"class {name!r} has one image; two are needed, one to train on and one held "
                    "out"
                )
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held_out[rng.permutation(members)[:count]] = True
        return held_out


def scan(folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Classes of a folder of class folders, and path and class index of every image, sorted.

    Raises:
        DataError: no class folders, or one without images.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        present = f"one class folder, {names[0]!r}" if names else "no class folders"
        raise DataError(f"{folder}: holds {present}; two or more are needed. Expected {LAYOUTS}")
    paths: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(names):
        images = sorted(_images_below(folder / name))
        if not images:
            raise DataError(
                f"{folder / name}: holds no images ({', '.join(sorted(EXTENSIONS))}); remove the "
                "folder or fill it"
            )
        paths += images
        targets += [target] * len(images)
    return names, paths, targets


def images_of(path: str | Path) -> list[Path]:
    """One image file, or all images below a folder, sorted.

    Raises:
        DataError: neither, or a folder without images.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    images = sorted(_images_below(path)) if path.is_dir() else []
    if not images:
        reason = "holds no images" if path.is_dir() else "no such file or folder"
        raise DataError(f"image={path}: {reason}")
    return images


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its subfolders; every folder once, though links make loops."""
    images: list[Path] = []
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        images += [
            Path(parent) / name
            for name in names
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")
        ]
        subfolders = {os.path.realpath(Path(parent) / name): name for name in sorted(folders)}
        folders[:] = [name for path, name in subfolders.items() if path not in seen]
        seen |= subfolders.keys()
    return images


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error

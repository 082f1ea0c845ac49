"""Folders of photographs: one folder per class, with or without a train/val split."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lfvit.data.classes import sort_names
from lfvit.data.images import images_below, in_words, printable
from lfvit.errors import DataError

log = logging.getLogger(__name__)

LAYOUTS = "DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg"

HELD_OUT = 0.1
"""Share of the images of a folder without a split that training leaves for validation."""

ROLES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
FILLERS = {"", "set", "dataset", "data", "split", "image", "images", "img", "imgs"}


class ImageFolder:
    """The images of one split of a folder; nothing is decoded here.

    Args:
        split: "train", "val" or another folder of `root`; Train/, training/ and seg_train/ are
            "train" as well, valid/, validation/ and, where there is none of these, test/ are "val".
        root: a folder with these, or one folder of classes, of which a part is held out for "val".
        val_fraction, split_seed: of the held-out images, see `hold_out`.

    Attributes:
        classes: folder names, sorted; whole numbers as numbers.
        paths, targets: of every image, class by class.
        folder: the one that holds the class folders.
        held_out: whether the split is a part of `folder`, of `num_total` images.
        notes: what the user should know.

    Raises:
        DataError: missing or empty folder, one split without the other, a class with too few images
            to hold one out.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str,
        val_fraction: float | None = None,
        split_seed: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        if printable(self.root) != str(self.root):
            raise DataError(f"data.root={printable(self.root)}: its name is not UTF-8; rename it")
        if not self.root.is_dir():
            raise DataError(f"data.root={self.root}: no such folder; expected {LAYOUTS}")
        self.folder = find_split(self.root, split)
        self.held_out = self.folder == self.root
        self.classes, self.paths, self.targets, passed_over = scan(self.folder)
        self.num_total = len(self.paths)
        self.notes = [passed_over] if passed_over else []
        if self.held_out:
            held_out = hold_out(self.targets, self.classes, val_fraction, split_seed)
            keep = np.flatnonzero(held_out != (split == "train"))
            self.paths = [self.paths[i] for i in keep]
            self.targets = [self.targets[i] for i in keep]
        elif role_of(self.folder.name) == "test" and role_of(split) == "val":
            self.notes.append(f"validation images are those of {self.folder}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        return self.paths[index], self.targets[index]

    def name(self, index: int) -> str:
        """The path below `root`, the same on every machine."""
        return printable(self.paths[index].relative_to(self.root).as_posix())


def role_of(folder: str) -> str | None:
    """ "train", "val" or "test" for the name of such a folder, None for any other."""
    words = [word for word in re.split(r"[^a-z]+", folder.lower()) if word not in FILLERS]
    last = words[-1].removesuffix("set") if words else ""
    return next((role for role, names in ROLES.items() if last in names), None)


def find_split(root: Path, split: str) -> Path:
    """The folder of a split; `root` itself where it holds classes.

    Raises:
        DataError: there are splits, but not this one, or two folders that could be it.
    """
    names = _subfolders(root)
    roles = {name: role for name in names if (role := role_of(name))}
    if split in names and role_of(split) is None:
        return root / split
    if len(set(roles.values())) == 1 and not any(_subfolders(root / name) for name in roles):
        roles = {}  # a class called "train" among others
    if not roles:
        if split in ("train", "val"):
            return root
        raise DataError(f"data.root={root}: has no {split}/; it has {', '.join(names[:9])}")
    wanted = [role_of(split), *(["test"] if role_of(split) == "val" else [])]
    for role in wanted:
        found = [name for name in roles if roles[name] == role]
        found = [split] if split in found else found
        if len(found) > 1:
            raise DataError(
                f"data.root={root}: {' and '.join(found)} could both be {split!r}; say which one "
                "with data.train_split=NAME and data.val_split=NAME"
            )
        if found:
            folder = root / found[0]
            inner = _subfolders(folder)  # some archives hold seg_train/seg_train/CLASS
            return folder / inner[0] if inner == [found[0]] else folder
    raise DataError(
        f"data.root={root}: has {next(iter(roles))}/ but no {split}/; expected {LAYOUTS}. To split "
        f"one folder of classes, make it data.root"
    )


def hold_out(
    targets: Sequence[int], classes: Sequence[str], fraction: float | None, seed: int | None
) -> np.ndarray:
    """Choose validation images of every class: (N,) bool.

    Args:
        targets: (N,) class indices.
        classes: names, for messages.
        fraction: share of each class, at least one image and not all of them; 1 is all of them,
            None is `HELD_OUT`.
        seed: of the choice, which no other seed moves; None is 0.

    Raises:
        DataError: a class with one image.
    """
    fraction = HELD_OUT if fraction is None else fraction
    labels, rng = np.asarray(targets), np.random.default_rng([seed or 0, len(targets)])
    held_out = np.full(len(labels), fraction == 1)
    for target, name in enumerate(classes if fraction < 1 else []):
        members = np.flatnonzero(labels == target)
        if len(members) == 1:
            raise DataError(
                f"class {name!r} has one image; two are needed, one to train on and one held out"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out[rng.permutation(members)[: max(0, count)]] = True
    return held_out


def scan(folder: Path) -> tuple[list[str], list[Path], list[int], str]:
    """Classes of a folder of class folders, path and class index of every image, sorted, and which
    other files there are, in words.

    Raises:
        DataError: no class folders, or one without images.
    """
    names = sort_names(_subfolders(folder))
    if len(names) < 2:
        present = f"one class folder, {names[0]!r}" if names else "no class folders"
        raise DataError(f"{folder}: holds {present}; two or more are needed. Expected {LAYOUTS}")
    paths: list[Path] = []
    targets: list[int] = []
    others: Counter[str] = Counter()
    for target, name in enumerate(names):
        images, other_files = images_below(folder / name)
        if not images:
            raise DataError(
                f"{printable(folder / name)}: holds no images{in_words(other_files)}; remove the "
                "folder or fill it"
            )
        paths += images
        targets += [target] * len(images)
        others += other_files
    passed_over = f"{folder}: passed over {others.total()} other files{in_words(others)}"
    return [printable(name) for name in names], paths, targets, passed_over if others else ""


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

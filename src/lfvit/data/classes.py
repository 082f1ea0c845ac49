"""Class names: the same for training and validation, and readable ones for ImageNet."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from timm.data import ImageNetInfo

from lfvit.errors import DataError


def sort_names(names: Iterable[str]) -> list[str]:
    """Class names in the order of their indices: sorted, as numbers where all are whole numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def check_same_classes(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Refuse two splits whose class indices do not mean the same.

    Args:
        train, val: class names by index.
        where: the setting and its value, for messages.

    Raises:
        DataError: names the first classes that differ.
    """
    for index, (a, b) in enumerate(zip_longest(train, val)):
        if a != b:
            raise DataError(
                f"{where}: train has {len(train)} classes and val {len(val)}, and class {index} is "
                f"{a!r} in train but {b!r} in val; give both the same classes in the same order"
            )


def read_classes(path: str | Path) -> list[str]:
    """The class names of a file, one a line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        names = Path(path).expanduser().read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"data.classes={path}: cannot be read ({error})") from error
    return [name.strip() for name in names if name.strip()]


def readable_names(classes: Sequence[str]) -> list[str]:
    """ImageNet's words for folders named after its WordNet ids; other names as they are."""
    info = ImageNetInfo()
    words = {name: info.label_name_to_description(name) for name in info.label_names()}
    short = [words[name].split(",")[0] if name in words else name for name in classes]
    counts = Counter(short)
    # a crane is a bird and a machine: tell them apart by their WordNet ids
    return [
        f"{word} ({name})" if counts[word] > 1 else word
        for name, word in zip(classes, short, strict=True)
    ]

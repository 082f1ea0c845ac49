"""Class lists: the same for training and validation, from names, numbers or a file."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from lfvit.errors import DataError


def check_same_classes(where: str, train: Sequence[str], val: Sequence[str]) -> None:
    """Refuse two sets whose class indices do not mean the same.

    Args:
        where: the setting and its value.

    Raises:
        DataError: naming classes that differ.
    """
    if list(train) == list(val):
        return
    names = set(train) ^ set(val)
    if not names:
        first = next(i for i, (a, b) in enumerate(zip(train, val, strict=True)) if a != b)
        raise DataError(
            f"{where}: train and val list the same classes in another order: class {first} is "
            f"{train[first]!r} in train and {val[first]!r} in val"
        )
    parts = [
        f"{', '.join(map(repr, some[:3]))}{' ...' if len(some) > 3 else ''} "
        f"{'is' if len(some) == 1 else 'are'} only in {split}"
        for split, mine in (("train", train), ("val", val))
        if (some := [name for name in mine if name in names])
    ]
    raise DataError(
        f"{where}: train and val hold different classes; {' and '.join(parts)} "
        f"({len(names)} differ in all)"
    )


def read_classes(path: Path) -> list[str]:
    """The names of a file: one per line, or JSON, a list or {name: index}.

    Raises:
        DataError: unreadable, empty, or a name that occurs twice.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else text.splitlines()
        if isinstance(content, dict):
            indices = {int(index): str(name) for name, index in content.items()}
            content = [indices[i] for i in range(len(content))]
        names = [str(name).strip() for name in content if str(name).strip()]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"data.classes={path}: not readable as class names, one per line, or JSON: a list or "
            f"{{name: index}} ({type(error).__name__}: {error})"
        ) from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise DataError(
            f"data.classes={path}: {f'{twice[0]!r} occurs twice' if twice else 'empty'}"
        )
    return names


def number_labels(
    where: str, train: np.ndarray, val: np.ndarray, declared: list[str] | None
) -> tuple[list[str], list[int], list[int]]:
    """Class names, and the class index of every label, of training and validation.

    Labels are whole numbers, which are class indices, or else names of classes, which are sorted
    where no list of them is given.

    Args:
        where: the setting and its value, for messages.
        train, val: (n,) text, the label of every image.
        declared: the names by class index, or None.

    Raises:
        DataError: labels outside the list; without a list, classes that only one of the two has.
    """
    found = [np.unique(labels, return_inverse=True) for labels in (train, val)]
    texts = [[_text(label) for label in unique] for unique, _ in found]
    numbers = all(label.isdecimal() for labels in texts for label in labels)
    if numbers:  # 007 is 7
        texts = [[str(int(label)) for label in labels] for labels in texts]
    order = (lambda label: int(label)) if numbers else str
    if declared is None:
        classes = sorted(set(texts[0]), key=order)
        check_same_classes(where, classes, sorted(set(texts[1]), key=order))
        if numbers and int(classes[-1]) != len(classes) - 1:
            gap = next(i for i, name in enumerate(classes) if int(name) != i)
            raise DataError(
                f"{where}: labels go up to {classes[-1]}, but no image has label {gap}; name all "
                "classes in a file (data.classes=FILE) if that is meant"
            )
    else:
        classes = declared
    place = {str(i) if numbers else name: i for i, name in enumerate(classes)}
    for split, labels in zip(("train", "val"), texts, strict=True):
        unknown = [label for label in labels if label not in place]
        if unknown:
            raise DataError(
                f"{where}: {split} has label {unknown[0]!r}, which is none of the {len(classes)} "
                f"classes ({classes[0]!r} to {classes[-1]!r})"
            )
    targets = [
        np.array([place[label] for label in labels])[inverse].tolist()
        for labels, (_, inverse) in zip(texts, found, strict=True)
    ]
    return classes, targets[0], targets[1]


def _text(label: bytes | str) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)


def readable_names(classes: list[str]) -> list[str]:
    """ImageNet's words for folders named after its WordNet ids; other names as they are."""
    words = _imagenet_words()
    short = [words[name].split(",")[0] if name in words else name for name in classes]
    counts = Counter(short)
    # a crane is a bird and a machine: tell them apart by their folders
    return [
        f"{word} ({name})" if counts[word] > 1 else word
        for name, word in zip(classes, short, strict=True)
    ]


@cache
def _imagenet_words() -> dict[str, str]:
    info = ImageNetInfo()
    return {name: info.label_name_to_description(name) for name in info.label_names()}

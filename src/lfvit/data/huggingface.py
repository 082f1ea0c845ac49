"""Photographs in data sets of the `datasets` library: from the hub, or saved on a disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lfvit.data.classes import check_same_classes, number_labels
from lfvit.data.images import WHOLE, Decoding, UnreadableImageError, decode, read_image
from lfvit.errors import ConfigError, DataError


@dataclass(frozen=True)
class HuggingFaceSet:
    """Images of one split, with their classes.

    classes: names. targets: a class index per image. title: of the split, in messages. rows: a data
    set of one column, whose files are not decoded by the library. decoding: how we do it.
    """

    classes: list[str]
    targets: list[int]
    title: str
    rows: Any
    decoding: Decoding = WHOLE

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """Data set, split and row."""
        return f"{self.title} row {index}"

    def draw(self, index: int) -> tuple[Image.Image, int, None]:
        """The image, its class index, and no box.

        Raises:
            UnreadableImageError: naming the row, and the file if it had a name.
        """
        (file,) = self.rows[index].values()
        if file is None:
            raise UnreadableImageError(f"{self.name(index)}: holds no image", "missing")
        if file["bytes"] is None:
            image = read_image(file["path"], self.decoding)
        else:
            called = f"{self.name(index)} ({file['path']})" if file["path"] else self.name(index)
            image = decode(file["bytes"], called, self.decoding)
        return image, self.targets[index], None


def open_huggingface(
    path: str, name: str | None, train: str, val: str, image: str, label: str
) -> tuple[HuggingFaceSet, HuggingFaceSet]:
    """Training and validation images.

    Args:
        path: name on the hub, or a folder: written by `save_to_disk`, or of parquet files, or of
            images as the library's imagefolder wants them. Code in it is never run.
        name: which configuration, of a data set that has several.
        train, val: splits.
        image, label: columns. Labels are a ClassLabel, class indices or names.

    Raises:
        ConfigError: the library is not installed.
        DataError: no such data set, split or column; labels that are missing; classes that only
            one of the two splits has, or in another order.
    """
    splits = [_load(path, name, split) for split in (train, val)]
    titles = [f"{path}[{split}]" for split in (train, val)]
    (train_labels, names), (val_labels, others) = (
        _labels(rows, label, title) for rows, title in zip(splits, titles, strict=True)
    )
    where = f"data.path={path}"
    if names is not None and others is not None:
        check_same_classes(where, names, others)
    classes, *targets = number_labels(where, train_labels, val_labels, names)
    train_set, val_set = (
        HuggingFaceSet(classes, numbers, title, _images(rows, image, title))
        for rows, numbers, title in zip(splits, targets, titles, strict=True)
    )
    return train_set, val_set


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data=huggingface needs the datasets library: pip install -e '.[data]'"
        ) from error
    return datasets


def _load(path: str, name: str | None, split: str) -> Any:
    """One split, by memory-mapped files."""
    library = _library()
    folder = Path(str(path)).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file():
            saved = library.load_from_disk(str(folder))
            if split not in saved:
                raise DataError(
                    f"data.path={path}: has no split {split!r}; valid for data.train_split and "
                    f"data.val_split: {', '.join(saved)}"
                )
            return saved[split]
        where = str(folder) if folder.exists() else str(path)
        return library.load_dataset(where, name, split=split)
    except DataError:
        raise
    except Exception as error:  # of many kinds, from parquet's to the network's
        first = str(error).strip().splitlines()[:1]
        hint = "" if folder.exists() else "; no such folder here, and the hub did not answer for it"
        raise DataError(
            f"data.path={path}: split {split!r} cannot be loaded{hint} "
            f"({type(error).__name__}: {''.join(first)})"
        ) from error


def _labels(rows: Any, label: str, title: str) -> tuple[np.ndarray, list[str] | None]:
    """The label of every row as text, and the class names, if the data set says them.

    Raises:
        DataError: no such column, or rows without a label.
    """
    _check_column(rows, "label", label, title)
    feature = rows.features[label]
    values = rows.select_columns([label])[:][label]
    missing = next((i for i, v in enumerate(values) if v is None or v == -1), None)
    if missing is not None:
        raise DataError(f"{title}: row {missing} has no label; use a split with labels")
    names = getattr(feature, "names", None)
    return np.array([str(value) for value in values]), None if names is None else list(names)


def _images(rows: Any, image: str, title: str) -> Any:
    """The column of images, as bytes or paths."""
    _check_column(rows, "image", image, title)
    library = _library()
    if not isinstance(rows.features[image], library.Image):
        raise DataError(f"{title}: data.image={image} is a column of {rows.features[image]}")
    return rows.select_columns([image]).cast_column(image, library.Image(decode=False))


def _check_column(rows: Any, setting: str, column: str, title: str) -> None:
    if column not in rows.features:
        raise DataError(
            f"{title}: has no column data.{setting}={column}; it has {', '.join(rows.features)}"
        )

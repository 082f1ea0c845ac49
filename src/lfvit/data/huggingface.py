"""Images in datasets of the `datasets` library: from the hub, on a disk, or in tar shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lfvit.data.classes import read_classes, sort_names
from lfvit.data.folders import hold_out
from lfvit.data.images import UnreadableImageError
from lfvit.errors import DataError


class HuggingFaceDataset:
    """The images of one split; files are memory-mapped by the library and not decoded by it.

    Args:
        split: its name, or a slice such as train[:90%].
        train: whether the images are for training: one saved dataset without splits is divided.
        path: name on the hub; a folder, written by `save_to_disk` or of parquet files or images; or
            one of the library's builders, such as webdataset. Code in a dataset is never run.
        root: folder that `data_files` are in.
        name: which configuration, of a dataset that has several.
        data_files: files of every split, with * and ?.
        image: column of the images.
        label: column of the labels: a ClassLabel, class indices, or class names. A field of a
            column with fields is COLUMN.FIELD.
        classes: file of class names by index, one a line, where the labels do not say them.
        val_fraction, split_seed: of the held-out part, see `lfvit.data.folders.hold_out`.

    Attributes:
        classes: class names.
        targets: class index of every image.
        held_out: whether the split is a part of the dataset's `num_total` images.

    Raises:
        DataError: no such dataset, split or column; rows without a label, labels without a name.
    """

    def __init__(
        self,
        split: str = "train",
        train: bool = True,
        *,
        path: str,
        root: str | None = None,
        name: str | None = None,
        data_files: dict[str, str | list[str]] | None = None,
        image: str = "image",
        label: str = "label",
        classes: str | None = None,
        val_fraction: float | None = None,
        split_seed: int | None = None,
    ) -> None:
        self.title = f"{path}[{split}]"
        rows, self.held_out = _load(split, path, root, name, data_files or {})
        if "." in label:
            rows = rows.flatten()
        for setting, column in (("image", image), ("label", label)):
            if column not in rows.features:
                raise DataError(
                    f"{self.title}: has no column data.{setting}={column}; it has "
                    f"{', '.join(rows.features)}"
                )
        image_type = type(rows.features[image])
        if image_type.__name__ != "Image":
            raise DataError(f"{self.title}: data.image={image} is a column of {image_type}")
        names = read_classes(classes) if classes else getattr(rows.features[label], "names", None)
        self.classes, self.targets = self._number(rows.select_columns([label])[:][label], names)
        self.rows = rows.select_columns([image]).cast_column(image, image_type(decode=False))
        self.num_total = len(self.targets)
        self.indices = np.arange(self.num_total)
        if self.held_out:
            held_out = hold_out(self.targets, self.classes, val_fraction, split_seed)
            self.indices = np.flatnonzero(held_out != train)
            self.targets = [self.targets[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[bytes | str, int]:
        (file,) = self.rows[int(self.indices[index])].values()
        if file is None:
            raise UnreadableImageError(f"{self.name(index)}: holds no image")
        return file["bytes"] or file["path"] or b"", self.targets[index]

    def name(self, index: int) -> str:
        """Dataset, split and row."""
        return f"{self.title} row {self.indices[index]}"

    def _number(self, labels: list[Any], names: list[str] | None) -> tuple[list[str], list[int]]:
        """Class names, and the class index of every label; without names, they are sorted."""
        missing = next((i for i, label in enumerate(labels) if label in (None, -1)), None)
        if missing is not None:
            raise DataError(f"{self.title}: row {missing} has no label; use a split with labels")
        numbers = all(isinstance(label, int) for label in labels)
        if names is None:
            distinct = sorted(set(labels)) if numbers else sort_names(set(labels))
            gap = next((i for i, label in enumerate(distinct) if i != label), None)
            if numbers and gap is not None:
                raise DataError(
                    f"{self.title}: labels go up to {distinct[-1]}, but no image has label {gap}; "
                    "name all classes in a file (data.classes=FILE) if that is meant"
                )
            names = [str(label) for label in distinct]
        index = {i if numbers else name: i for i, name in enumerate(names)}
        unknown = next((label for label in labels if label not in index), None)
        if unknown is not None:
            raise DataError(
                f"{self.title}: label {unknown!r} is none of the {len(names)} classes "
                f"({names[0]!r} to {names[-1]!r})"
            )
        return list(names), [index[label] for label in labels]


def _load(
    split: str, path: str, root: str | None, name: str | None, data_files: Mapping[str, Any]
) -> tuple[Any, bool]:
    """The rows of a split, memory-mapped, and whether they are all there is, to be divided."""
    import datasets

    folder, base = Path(path).expanduser(), None if root is None else Path(root).expanduser()
    for key, patterns in data_files.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if base is not None and not any(base.glob(pattern)):
                raise DataError(f"data.data_files.{key}={pattern}: no such files in {base}")
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return _of_saved(datasets.load_from_disk(str(folder)), split)
        rows = datasets.load_dataset(
            str(folder) if folder.exists() else path,
            name,
            data_dir=None if base is None else str(base),
            data_files=dict(data_files) or None,
            split=split,
        )
        return rows, False
    except Exception as error:  # of many kinds, from parquet's to the network's
        reason = "".join(str(error).strip().splitlines()[:1])
        raise DataError(
            f"data.path={path}: split {split!r} cannot be loaded ({type(error).__name__}: {reason})"
            "; other names of the splits: data.train_split=NAME data.val_split=NAME"
        ) from error


def _of_saved(saved: Any, split: str) -> tuple[Any, bool]:
    """A split, or slices of splits, of what `save_to_disk` wrote.

    Raises:
        ValueError: no such split; names those there are.
    """
    from datasets import Dataset, ReadInstruction, concatenate_datasets

    if isinstance(saved, Dataset):  # one, without splits
        if "[" not in split:
            return saved, True
        saved = {str(saved.split or "train"): saved}
    wanted = ReadInstruction.from_spec(split)
    lengths = {name: len(rows) for name, rows in saved.items()}
    parts = [
        saved[part.splitname].select(range(part.from_, part.to))
        for part in wanted.to_absolute(lengths)
    ]
    return concatenate_datasets(parts), False

"""From configs and checkpoints to data."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_method
from timm.data import ImageNetInfo

from lfvit.data.folders import HELD_OUT
from lfvit.data.settings import DATASETS, DataSettings, FolderSettings
from lfvit.errors import ConfigError, DataError
from lfvit.models.checkpoints import RECORD, read_file
from lfvit.runs.record import LOCATIONS, CheckpointRecord, make_absolute
from lfvit.utils.validation import plain

if TYPE_CHECKING:
    from lfvit.data import ImageDataModule

log = logging.getLogger(__name__)


def open_data(chosen: Any, record: CheckpointRecord) -> "ImageDataModule":
    """The data to evaluate a checkpoint on: its own, where the command line does not say else.

    Of a folder without a split these are the images that training held out; all of them if it was
    trained on another one.

    Args:
        chosen: the group data of the command line, or None.
        record: of the checkpoint.

    Raises:
        ConfigError: settings that cannot work, or a class that only the file names.
        DataError: other classes than the model was trained on.
    """
    own = {key: value for key, value in record.data.items() if value is not False}
    chosen = plain(chosen) or {}
    dataset, settings = chosen.get("dataset", {}), dict(chosen)
    if "_target_" not in chosen:  # no option of the group, single settings at most
        if not own:
            raise ConfigError("the checkpoint names no data; pass data=imagefolder data.root=DIR")
        for key in LOCATIONS:
            if key in chosen and key not in own:
                kind = own["dataset"]["_target_"].rpartition(".")[2]
                raise ConfigError(
                    f"data.{key} is set, but the checkpoint was trained on {kind}, which has no "
                    "such setting; say which kind of data it is as well: data=imagefolder, "
                    "data=shards or data=huggingface"
                )
        settings = {**own, **chosen}
        if dataset.get("_target_") not in (None, own["dataset"]["_target_"]):
            theirs = own.keys() - DataSettings.model_fields.keys() - chosen.keys()
            settings = {key: value for key, value in settings.items() if key not in theirs}
        else:
            settings["dataset"] = {**own["dataset"], **dataset}
        if settings.get("root", "") is None:
            raise ConfigError(
                "the checkpoint does not say where its images are; pass data.root=DIR"
            )
    make_absolute(settings)
    keys = ("dataset", *LOCATIONS, "name", "data_files", "train_split", "val_split")
    moved = "root" in own and own["root"] is None  # as in the zoo, which does not say where it was
    ours, theirs = ({**one, "dataset": _split_like(one)} for one in (settings, own))
    same = bool(own) and all(
        ours.get(key) == theirs.get(key) for key in keys if not (moved and key == "root")
    )
    if "val_fraction" in settings:
        if same:
            held_out = (own.get("val_fraction"), own.get("split_seed", own.get("seed")))
            for key, value in zip(("val_fraction", "split_seed"), held_out, strict=True):
                if chosen.get(key) not in (None, value):
                    raise ConfigError(
                        f"data.{key}={chosen[key]}: a model is evaluated on the images that its "
                        "training held out; leave it out"
                    )
                settings[key] = value
        elif chosen.get("val_fraction") is None:
            settings["val_fraction"] = 1
    settings |= {"seed": own.get("seed", 0), "image_size": record.image_size}
    settings["augment"] = record.preprocessing.model_dump()
    settings |= {key: settings["augment"].pop(key) for key in ("mean", "std")}
    settings["cache"] = chosen.get("cache")  # of this run, not of the data
    data = make_data(settings, trusted="_target_" in dataset)
    data.setup("validate")
    data.trained_on = same and not moved
    images: Any = data.val_images
    if same and getattr(images, "held_out", False):
        trained = (record.layout or {}).get("train_images")
        left = images.num_total - len(images)
        data.trained_on = trained == left
        if trained != left and moved:  # another folder
            data = make_data(settings | {"val_fraction": 1})
            data.setup("validate")
        elif trained not in (None, left):
            log.warning(
                "training took %s images, but of those in the folder it would now take %d: it may "
                "have seen some of those evaluated",
                trained,
                left,
            )
    _check_classes(data, record)
    return data


def _split_like(settings: Mapping[str, Any]) -> Any:
    """The dataset of the group data; of all that divide a folder alike, the same."""
    dataset = settings.get("dataset") or {}
    schema: Any = DATASETS.get(dataset.get("_target_", ""), object)
    kind = "folder" if issubclass(schema, FolderSettings) else dataset.get("_target_")
    return {"kind": kind, **{key: value for key, value in dataset.items() if key[0] != "_"}}


def _check_classes(data: "ImageDataModule", record: CheckpointRecord) -> None:
    """The classes of the data have to be those that the model was trained on.

    Raises:
        DataError: other classes, or another number of them.
    """
    if record.data and data.classes != record.classes:
        unknown = sorted(set(data.classes) ^ set(record.classes)) or ["their order"]
        raise DataError(
            f"the data's {len(data.classes)} classes are not the {len(record.classes)} the "
            f"model was trained on; they differ in {', '.join(unknown[:3])}"
        )
    if len(data.classes) != len(record.classes):
        raise DataError(
            f"the data has {len(data.classes)} classes, the model {len(record.classes)} outputs"
        )
    if not record.data and data.val_images.classes != ImageNetInfo().label_names():
        log.warning(
            "the weights do not name their classes; they are taken to be in this order: %s, ...",
            ", ".join(data.classes[:3]),
        )


def check_split(init_from: str | Path | None, data: "ImageDataModule") -> None:
    """A training validates on images that the weights it starts from never saw.

    Args:
        init_from: the file of weights, or None.
        data: of the training, set up.

    Raises:
        ConfigError: the weights were trained on the same folder, and held out other images.
    """
    if init_from is None or not getattr(data.val_images, "held_out", False):
        return
    record = read_file(init_from).get(RECORD)
    own = record.get("data") if isinstance(record, dict) else None
    ours = dict(data.options)
    make_absolute(ours)
    if not isinstance(own, dict) or any(own.get(key) != ours.get(key) for key in LOCATIONS):
        return
    seed = own.get("split_seed", own.get("seed"))
    theirs = (own.get("val_fraction") or HELD_OUT, seed or 0)
    if theirs != (ours.get("val_fraction") or HELD_OUT, ours.get("split_seed") or 0):
        raise ConfigError(
            f"init_from={init_from} was trained on images that this training would validate on; "
            f"pass data.val_fraction={theirs[0]} data.split_seed={theirs[1]}, as there"
        )


def make_data(settings: Mapping[str, Any], trusted: bool = True) -> "ImageDataModule":
    """The DataModule of the group data, as plain values.

    Args:
        settings: of the group.
        trusted: whether the command line names the dataset's class; else it has to be one of this
            project, whatever a file says.

    Raises:
        ConfigError: unknown settings, or a class that is not run.
    """
    target = (settings.get("dataset") or {}).get("_target_")
    if not isinstance(target, str):
        raise ConfigError("data.dataset names no class; pass data=imagefolder, or another option")
    if not trusted and target not in DATASETS:
        raise ConfigError(
            f"data.dataset._target_={target!r} is named by a file, and is only run if the command "
            f"line names it as well; of this project: {', '.join(DATASETS)}"
        )
    from lfvit.data import ImageDataModule

    arguments = {key: value for key, value in settings["dataset"].items() if key[0] != "_"}
    others = {k: v for k, v in settings.items() if k != "dataset" and k[0] != "_"}
    return ImageDataModule(partial(get_method(target), **arguments), **others)

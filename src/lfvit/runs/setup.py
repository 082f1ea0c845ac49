"""From configs and checkpoints to models, data and trainer settings, for every command."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hydra
from omegaconf import DictConfig
from torch import nn

import lfvit.data
from lfvit.data import ImageDataModule
from lfvit.data.settings import DATASETS
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.models import create_model
from lfvit.models.checkpoints import load_checkpoint
from lfvit.models.weight_files import RECORD, extract_weights, read_file
from lfvit.runs.provenance import commit
from lfvit.utils.validation import check_range, plain

PLACES = ("root", "path")
"""Settings of data that say where it is."""

CREATED_WITH = ("backbone", "image_size", "num_classes", "reducer")

RECORDED = {  # what a checkpoint's record holds, as far as models and data are made from it
    "method": dict,
    "backbone": dict,
    "reducer": dict,
    "data": dict,
    "schedule": dict,
    "classes": list,
}


class Trained(NamedTuple):
    """A model with its weights, and what its checkpoint says about it (see `make_record`)."""

    model: nn.Module
    record: dict[str, Any]


def build_model(settings: Mapping[str, Any], num_classes: int, **overrides: Any) -> nn.Module:
    """The model of a config or record: its method, backbone, reducer and image_size."""
    method = plain(settings["method"])
    for name in {"pretrained", "drop_path_rate", *CREATED_WITH} & set(method):
        raise ConfigError(f"method.{name} is no setting of a method")  # a file may say anything
    options = {**method, **overrides}
    if "reducer" in settings:
        options["reducer"] = plain(settings["reducer"])
    backbone = plain(settings["backbone"])
    return create_model(
        options.pop("name"),
        backbone=backbone.get("timm", backbone),
        image_size=settings["image_size"],
        num_classes=num_classes,
        **options,
    )


def make_record(cfg: DictConfig, classes: list[str]) -> dict[str, Any]:
    """What a checkpoint needs to be used without its config: plain values only."""
    keys = ("method", "backbone", "reducer", "image_size", "data", "seed", "threshold")
    record = {key: plain(cfg[key]) for key in keys} | recipe(cfg)
    _make_absolute(record["data"])
    return {**record, "classes": classes, "commit": commit()}


def recipe(cfg: DictConfig) -> dict[str, Any]:
    """How the weights are trained: what a training that goes on has to repeat."""
    groups = {key: plain(cfg[key]) for key in ("schedule", "optimizer", "lr_scheduler")}
    ema = plain(cfg.callbacks.get("ema"))
    return {**groups, "max_epochs": cfg.trainer.max_epochs, "ema": ema}


def model_overrides(cfg: DictConfig) -> dict[str, Any]:
    """What the command line says about the model of a checkpoint."""
    keys = ("method", "backbone", "reducer", "image_size", "threshold")
    return {key: plain(cfg[key]) for key in keys if cfg.get(key) is not None}


def record_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """What a checkpoint says about its model, see `make_record`; empty where it says nothing.

    Raises:
        CheckpointError: a record that no training writes.
    """
    record = content.get(RECORD) or {}
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its entry {RECORD!r} is a {type(record).__name__}")
    for key, kind in RECORDED.items():
        if key in record and not isinstance(record[key], kind):
            raise CheckpointError(
                f"{path}: its record says {key}={record[key]!r}, which is no {kind.__name__}; use "
                "an earlier checkpoint"
            )
    if "method" in record and not isinstance(record["method"].get("name"), str):
        raise CheckpointError(f"{path}: its record does not name its method; pass method= as well")
    if not all(isinstance(name, str) for name in record.get("classes", [])):
        raise CheckpointError(f"{path}: its record holds classes that are no names")
    return dict(record)


def overridden(record: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a checkpoint's record with what `overrides` say instead, see `load_trained`."""
    merged = dict(record)
    for key, value in overrides.items():
        whole = {"name", "timm", "family"}  # with one of these, another option altogether
        if isinstance(value, dict) and key in merged and not whole & value.keys():
            merged[key] = {**merged[key], **value}  # single settings of the checkpoint's own
        else:
            merged[key] = value
    return merged


def load_trained(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Trained:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a checkpoint of this project, or other weights if `overrides` describe the model.
        overrides: what replaces the checkpoint's own method, backbone, reducer (or single settings
            of these), image_size and threshold.

    Raises:
        CheckpointError, ConfigError: unreadable, not describing its model, or not fitting it.
    """
    content = read_file(path)
    own = record_of(content, path)
    record = overridden(own, overrides or {})
    its_own = record == own  # what is wrong with it is wrong with the file
    lacking = [key for key in ("method", "backbone", "image_size") if key not in record]
    if lacking:
        raise CheckpointError(
            f"{path}: does not say what model its weights belong to; pass {lacking[0]}= as well, "
            "for example method=vit backbone=deit_small image_size=224"
        )
    check_range("threshold", record.setdefault("threshold", 0.7), 0)
    classes = record.setdefault("classes", [str(i) for i in range(_num_classes(content, path))])
    try:
        model = build_model(record, len(classes))
        load_checkpoint(model, content)
    except ConfigError as error:
        if its_own:
            raise CheckpointError(f"{path}: its record describes no model: {error}") from error
        raise
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("the state dict", str(path), 1)) from error
    return Trained(model.eval(), record)


def open_data(cfg: DictConfig | SimpleNamespace, record: Mapping[str, Any]) -> ImageDataModule:
    """The data of an evaluation: the checkpoint's own, as far as ``cfg.data`` does not say else.

    The images held out of a folder without a split are the ones that training held out.

    Raises:
        DataError: other classes than the model was trained on.
    """
    own = record.get("data", {})
    chosen: dict[str, Any] = plain(getattr(cfg, "data", None)) or {}
    settings, dataset = dict(chosen), chosen.get("dataset", {})
    if "_target_" not in settings:
        if not own:
            raise ConfigError("the checkpoint names no data; pass data=imagefolder data.root=DIR")
        for place in PLACES:
            if place in settings and place not in own:
                kind = own.get("dataset", {}).get("_target_", "other data").rpartition(".")[2]
                raise ConfigError(
                    f"data.{place} is set, but the checkpoint was trained on {kind}, which has no "
                    "such setting; say which kind of data it is as well: data=imagefolder, "
                    "data=shards or data=huggingface"
                )
        settings = {**own, **settings}
        if "_target_" not in dataset or dataset["_target_"] == own["dataset"]["_target_"]:
            settings["dataset"] = {**own.get("dataset", {}), **dataset}
        if settings.get("root", "") is None:
            raise ConfigError(
                f"{cfg.ckpt_path} does not say where its images are; pass data.root=DIR"
            )
    _make_absolute(settings)
    same = ("dataset", "root")
    if "val_fraction" in own and all(settings.get(key) == own.get(key) for key in same):
        settings["val_fraction"] = own["val_fraction"]
    settings["seed"] = own.get("seed", 0)
    settings["augment"] = own.get("augment")
    settings["cache"] = chosen.get("cache")  # of this run, not of the data
    settings["image_size"] = record["image_size"]
    data = make_data(settings, trusted="_target_" in dataset)
    data.setup("validate")
    if data.classes != record["classes"] and own:
        unknown = sorted(set(data.classes) ^ set(record["classes"])) or ["their order"]
        raise DataError(
            f"the data's {len(data.classes)} classes are not the {len(record['classes'])} the "
            f"model was trained on; they differ in {', '.join(map(str, unknown[:3]))}"
        )
    if len(data.classes) != len(record["classes"]):
        raise DataError(
            f"the data has {len(data.classes)} classes, the model {len(record['classes'])} outputs"
        )
    return data


def make_data(settings: Mapping[str, Any], trusted: bool = True) -> ImageDataModule:
    """The DataModule of the group data, as plain values.

    Args:
        settings: of the group.
        trusted: whether the command line names the dataset's class; else it has to be one of this
            project, whatever a file says.

    Raises:
        ConfigError: unknown settings, or a class that is not run.
    """
    dataset = settings.get("dataset")
    target = dataset.get("_target_") if isinstance(dataset, dict) else None
    if not isinstance(target, str):
        raise ConfigError("the data settings are of an older version; train again")
    if target in DATASETS:
        make: Any = getattr(lfvit.data, target.rpartition(".")[2])
    elif trusted:
        make = hydra.utils.get_method(target)
    else:
        raise ConfigError(
            f"data.dataset._target_={target!r} is named by a file, and is only run if the command "
            f"line names it as well; of this project: {', '.join(DATASETS)}"
        )
    arguments = {key: value for key, value in dataset.items() if key[0] != "_"}
    others = {k: v for k, v in settings.items() if k != "dataset" and k[0] != "_"}
    return ImageDataModule(partial(make, **arguments), **others)


def _make_absolute(data: dict[str, Any]) -> None:
    """Folders in settings of data mean the same from every working directory.

    A path that is no folder may be a name on a hub, and stays.
    """
    for place in PLACES:
        if data.get(place) is not None:
            folder = Path(str(data[place])).expanduser().absolute()
            if place == "root" or folder.exists():
                data[place] = str(folder)


def _num_classes(content: Mapping[str, Any], path: str | Path) -> int:
    weights = extract_weights(content, str(path))
    found = (value for key, value in weights.items() if key.split(".")[-2:] == ["head", "weight"])
    heads = [value for value in found if value.ndim]
    if not heads:
        raise CheckpointError(f"{path}: has no head.weight, so its number of classes is unknown")
    return len(heads[0])

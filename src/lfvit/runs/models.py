"""From configs and checkpoints to models, and how their images are prepared."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import timm
from omegaconf import DictConfig, open_dict
from timm.data import ImageNetInfo, resolve_data_config
from torch import nn

from lfvit.data.classes import readable_names
from lfvit.data.settings import Preprocessing
from lfvit.errors import CheckpointError, ConfigError
from lfvit.models.checkpoints import extract_weights, load_checkpoint, read_file
from lfvit.models.factory import create_model
from lfvit.runs.record import CheckpointRecord, override, read_record
from lfvit.utils.validation import plain, validate

log = logging.getLogger(__name__)

NOT_OF_METHODS = {"backbone", "reducer", "pretrained", "drop_path_rate"}
NOT_OF_METHODS |= {"image_size", "num_classes"}
"""Arguments of `create_model` that a record's method must not set."""


class Trained(NamedTuple):
    """A model with its weights, and what its checkpoint says about it."""

    model: nn.Module
    record: CheckpointRecord


def build_model(
    settings: Mapping[str, Any] | DictConfig | CheckpointRecord, num_classes: int, **options: Any
) -> nn.Module:
    """The model of a config or record: its method, backbone, reducer and image_size.

    Raises:
        ConfigError: settings that describe no model.
    """
    if isinstance(settings, CheckpointRecord):
        settings = settings.model_dump()
    method, backbone = plain(settings["method"]), plain(settings["backbone"])
    for name in NOT_OF_METHODS & method.keys():
        raise ConfigError(f"method.{name} is no setting of a method")
    return create_model(
        method.pop("name"),
        backbone=backbone.get("timm", backbone),
        image_size=settings["image_size"],
        num_classes=num_classes,
        reducer=plain(settings.get("reducer", "none")),
        **{**method, **options},
    )


def load_trained(
    path: str | Path, overrides: Mapping[str, Any] | None = None, averaged: bool = True
) -> Trained:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a checkpoint of this project, or other weights if `overrides` describe the model.
        overrides: of method, backbone, reducer, image_size and threshold, see
            `lfvit.runs.record.override`.
        averaged: the averaged weights of a training that averages; False: the raw ones.

    Raises:
        CheckpointError, ConfigError: unreadable, not describing its model, or not fitting it.
    """
    content = read_file(path)
    if not averaged:
        if "current_model_state" not in content:  # Lightning's name
            raise CheckpointError(f"{path}: has no raw weights beside its own; set averaged=true")
        content = {**content, "state_dict": content["current_model_state"]}
    own = read_record(content, path)
    said = (overrides or {}).get("preprocessing", {})
    values = override(own.model_dump() if own else {}, overrides or {})
    for key in ("method", "backbone", "image_size"):
        if key not in values:
            raise CheckpointError(
                f"{path}: does not say what model its weights belong to; pass {key}= as well, "
                "for example method=vit backbone=deit_small image_size=224"
            )
    if own is None:
        number = _num_classes(content, path)
        imagenet = readable_names(ImageNetInfo().label_names())  # in the order of every such file
        values["classes"] = imagenet if number == 1000 else [str(i) for i in range(number)]
        values["preprocessing"] = timm_preprocessing(values) | said
    record = validate(CheckpointRecord, values)
    if own is None or own.preprocessing != record.preprocessing:
        _check_preprocessing(path, own, record)
    try:
        model = build_model(record, len(record.classes))
        load_checkpoint(model, content)
    except ConfigError as error:
        if record == own:
            raise CheckpointError(f"{path}: its record describes no model: {error}") from error
        raise
    except CheckpointError as error:
        message = str(error).replace("the state dict", str(path), 1)
        sizes = ("method", "backbone", "image_size")
        if own and (other := [k for k in sizes if getattr(own, k) != getattr(record, k)]):
            message += f". It was trained with another {', '.join(other)}: leave that out"
        raise CheckpointError(message) from error
    return Trained(model.eval(), record)


def timm_preprocessing(settings: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """How images are prepared for timm's weights of a named backbone; the defaults for others.

    The crop is timm's for one pass only: files of two passes are of the methods' authors, who crop
    as DeiT's code does.
    """
    name, known = plain(settings["backbone"]).get("timm"), None
    if name is not None and timm.is_model(name):
        with suppress(RuntimeError):  # no such tag, which `create_model` says
            known = timm.get_pretrained_cfg(name)
    if known is None:
        return Preprocessing().model_dump()
    config = resolve_data_config(pretrained_cfg=known.to_dict())
    one_pass = settings["method"]["name"] == "vit"
    names = Preprocessing.model_fields if one_pass else ("mean", "std")
    return {key: config[key] for key in names}


def with_preprocessing(cfg: DictConfig, resumed: CheckpointRecord | None) -> DictConfig:
    """The config of a training with data.mean and data.std, where it has none those of its weights.

    These are what the checkpoint that it starts from says, or timm of its backbone.

    Raises:
        CheckpointError: others than those of the training that is continued.
    """
    known, source = resumed, f"as in {cfg.ckpt_path}"
    if known is None and cfg.init_from is not None:
        with suppress(CheckpointError):  # of another version: its weights are used alone
            known, source = read_record(read_file(cfg.init_from), ""), f"as in {cfg.init_from}"
    if known is None:
        name = plain(cfg.backbone).get("timm")
        source = f"as timm does for {name}" if name else "as on ImageNet"
    theirs = known.preprocessing.model_dump() if known else timm_preprocessing(cfg)
    said = {key: plain(cfg.data.get(key)) for key in ("mean", "std")}
    used = {key: tuple(value or theirs[key]) for key, value in said.items()}
    words = " ".join(f"data.{k}=[{','.join(f'{x:g}' for x in v)}]" for k, v in used.items())
    same = all(used[key] == tuple(theirs[key]) for key in used)
    if resumed is not None and not same:
        raise CheckpointError(f"{cfg.ckpt_path}: was not trained with {words}; leave them out")
    log.info("images are normalised with %s, %s", words, source if same else f"and not {source}")
    cfg = cfg.copy()
    with open_dict(cfg.data):
        cfg.data.update(used)
    return cfg


def _check_preprocessing(
    path: str | Path, own: CheckpointRecord | None, record: CheckpointRecord
) -> None:
    """Say how the images of weights are prepared that do not say so, or say otherwise.

    Raises:
        ConfigError: another crop than the weights were trained for.
    """
    used = record.preprocessing.model_dump()
    words = ", ".join(f"{key} {value}" for key, value in used.items())
    if own is None:
        log.info("%s: does not say how its images were prepared; used here: %s", path, words)
        return
    for key, trained in own.preprocessing.model_dump().items():
        if key not in ("mean", "std") and used[key] != trained:
            raise ConfigError(
                f"augment.{key}={used[key]}: {path} was trained and validated with {trained}; "
                "leave it out"
            )
    log.warning("%s: was trained with another mean or std; used here: %s", path, words)


def with_seed(cfg: DictConfig, record: CheckpointRecord) -> CheckpointRecord:
    """The record with the seed of the command line, if there is one.

    Raises:
        ConfigError: nothing is drawn that a seed could change.
    """
    if cfg.seed is None:
        return record
    if "random" not in str(record.method.get("selector")):
        raise ConfigError(
            f"seed={cfg.seed} has no effect: only method.selector=random or random_cells draws"
        )
    return record.model_copy(update={"seed": cfg.seed})


def _num_classes(content: Mapping[str, Any], path: str | Path) -> int:
    weights = extract_weights(content, str(path))
    found = (value for key, value in weights.items() if key.split(".")[-2:] == ["head", "weight"])
    heads = [value for value in found if value.ndim]
    if not heads:
        raise CheckpointError(f"{path}: has no head.weight, so its number of classes is unknown")
    return len(heads[0])

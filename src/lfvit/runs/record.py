"""The record in a checkpoint: what is needed to use its weights without the run's config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field, field_validator, model_validator

from lfvit.data.settings import Preprocessing, data_settings
from lfvit.errors import CheckpointError, ConfigError
from lfvit.models.checkpoints import RECORD
from lfvit.runs.provenance import commit
from lfvit.utils.validation import Settings, plain, validate

FORMAT: Literal[2] = 2
"""Version of the record. A reader refuses any other."""

MODEL = ("method", "backbone", "reducer", "image_size", "threshold")
"""What a command line may say of a checkpoint's model."""

LOCATIONS = ("root", "path")
"""Settings of data that say where it is."""


class CheckpointRecord(Settings):
    """What a checkpoint says about itself, plain values only.

    method, backbone, reducer, data: groups of the training's config. preprocessing: of images in
    evaluation; older records have the crop among their data, and ImageNet's mean and std. recipe:
    how the weights were trained, see `recipe_of`. threshold: eta. calibrated_on: number of
    validation images it was chosen on in training, None if it was set. classes: names, by index.
    commit: of the code that trained. tracking: of the W&B run. layout: how an epoch was divided,
    see `runs.resume`.
    """

    format: Literal[2] = FORMAT
    method: dict[str, Any]
    backbone: dict[str, Any]
    reducer: dict[str, Any] = Field({"name": "none"})
    image_size: Annotated[int, Field(ge=1)]
    preprocessing: Preprocessing
    data: dict[str, Any] = Field({})
    recipe: dict[str, Any] = Field({})
    seed: Annotated[int, Field(ge=0)] = 0
    threshold: Annotated[float, Field(ge=0)] = 0.7
    calibrated_on: int | None = None
    classes: list[str]
    commit: str | None = None
    tracking: dict[str, Any] = Field({})
    layout: dict[str, int] | None = None

    @property
    def about_threshold(self) -> str:
        """A line for the terminal: the threshold in use, and where it is from."""
        if self.calibrated_on is None:
            return f"threshold {self.threshold:g}"
        return (
            f"threshold {self.threshold:g}, calibrated on {self.calibrated_on} validation images "
            "when it was trained; threshold=ETA sets another"
        )

    @model_validator(mode="before")
    @classmethod
    def _with_preprocessing(cls, values: dict[str, Any]) -> dict[str, Any]:
        data = values.get("data")
        augment = data.get("augment") if isinstance(data, dict) else None
        augment = augment if isinstance(augment, dict) else {}
        names = ("interpolation", "crop_pct")
        before = {k: augment[k] for k in names if augment.get(k) not in (None, "random")}
        return {"preprocessing": before, **values}

    @field_validator("method", "reducer")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("its name is missing")
        return value

    @field_validator("data")
    @classmethod
    def _with_dataset(cls, value: dict[str, Any]) -> dict[str, Any]:
        dataset = value.get("dataset")
        if value and not (isinstance(dataset, dict) and isinstance(dataset.get("_target_"), str)):
            raise ValueError("it names no dataset")
        return value


def make_record(cfg: DictConfig, classes: list[str]) -> dict[str, Any]:
    """The record of a training's checkpoints, without tracking and layout."""
    data = plain(cfg.data)
    make_absolute(data)
    keys = (*MODEL, "seed")
    record = CheckpointRecord(
        **{key: plain(cfg[key]) for key in keys if cfg.get(key) is not None},
        data=data,
        preprocessing=data_settings(data).preprocessing,
        recipe=recipe_of(cfg),
        classes=classes,
        commit=commit(),
    )
    return record.model_dump()


def recipe_of(cfg: DictConfig) -> dict[str, Any]:
    """How the weights are trained: what a training that goes on has to repeat."""
    groups = {key: plain(cfg[key]) for key in ("schedule", "optimizer", "lr_scheduler")}
    ema = plain(cfg.callbacks.get("ema"))
    return {**groups, "max_epochs": cfg.trainer.get("max_epochs"), "ema": ema}


def read_record(content: Mapping[str, Any], path: str | Path) -> CheckpointRecord | None:
    """The record in the contents of a checkpoint; None in other weights.

    Raises:
        CheckpointError: a record that no training writes, or one of another version.
    """
    record = content.get(RECORD)
    if record is None:
        return None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its entry {RECORD!r} is a {type(record).__name__}")
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: written by another version of lfvit; train it again with this one, or use "
            "its weights alone (init_from=), or the version that wrote it"
        )
    try:
        return validate(CheckpointRecord, record)
    except (ConfigError, TypeError) as error:  # names that are no text
        raise CheckpointError(f"{path}: its record cannot be used: {error}") from error


def model_overrides(cfg: DictConfig) -> dict[str, Any]:
    """What the command line says about the model of a checkpoint, and about its images."""
    said = {key: plain(cfg[key]) for key in MODEL if cfg.get(key) is not None}
    return said | said_preprocessing(cfg)


def said_preprocessing(cfg: DictConfig) -> dict[str, Any]:
    """What a command on a checkpoint says about preparing images, as "preprocessing".

    Raises:
        ConfigError: settings of training, which would have no effect.
    """
    data, augment = plain(cfg.get("data")) or {}, plain(cfg.get("augment")) or {}
    valid = Preprocessing.model_fields.keys() - {"mean", "std"}
    for name in augment if isinstance(augment, dict) else [augment]:
        if name not in valid:
            raise ConfigError(
                f"augment.{name} has no effect here: images are not augmented; valid: "
                f"{', '.join(f'augment.{name}' for name in sorted(valid))}"
            )
    said: dict[str, Any] = {}
    for group, values in (
        ("augment", augment),
        ("data", {k: data.get(k) for k in ("mean", "std")}),
    ):
        values = {key: value for key, value in values.items() if value is not None}
        validate(Preprocessing, values, group)
        said |= values
    return {"preprocessing": said} if said else {}


def override(record: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A record's values with those of `overrides` instead.

    Single settings of a group replace the checkpoint's; a group with its name or family replaces
    all of it.
    """
    merged = dict(record)
    if overrides.get("threshold") is not None:
        merged["calibrated_on"] = None
    for key, value in overrides.items():
        if isinstance(value, dict) and not {"name", "timm", "family"} & value.keys():
            merged[key] = {**merged.get(key, {}), **value}
        elif value is not None:
            merged[key] = value
    return merged


def make_absolute(data: dict[str, Any]) -> None:
    """Make folders in settings of data mean the same from every working directory.

    A path that is no folder may be a name on a hub, and stays.
    """
    for location in LOCATIONS:
        if data.get(location) is not None:
            folder = Path(str(data[location])).expanduser().absolute()
            if location == "root" or folder.exists():
                data[location] = str(folder)

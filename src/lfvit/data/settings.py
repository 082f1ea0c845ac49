"""Settings of the groups data and augment, checked without PyTorch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lfvit.errors import UnknownSettingError
from lfvit.utils.validation import Settings, validate

Share = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Means = Annotated[tuple[float, float, float], Field(strict=False)]
Deviations = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
CropMode = Literal["center", "squash"]


def _workers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 0):
        return value
    raise ValueError("auto, or a number of processes from 0")


class Preprocessing(Settings):
    """How an image becomes the input of a model; names and defaults are timm's.

    mean, std: of the channels, for values in 0..1. crop_pct: the image is resized to S / crop_pct,
    then the S x S pixels in the middle are taken. crop_mode: "center" resizes the shorter side to
    that, "squash" both.
    """

    mean: Means = (0.485, 0.456, 0.406)
    std: Deviations = (0.229, 0.224, 0.225)
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    crop_mode: CropMode = "center"


class AugmentSettings(Settings):
    """How training images vary, in timm's and DeiT's names. Evaluation uses crop_pct, crop_mode
    and interpolation alone, see `Preprocessing`.

    crop_scale: share of the area that a random crop covers. hflip: probability. color_jitter:
    strength, without effect beside auto_augment. auto_augment: timm's policy string. erasing:
    probability. mixup, cutmix: alpha of their Beta distribution, 0 is off;
    mix_prob: share of the batches mixed; mix_switch: share of these that is cut. mix_token: alpha
    of mix-token, in every batch, for backbones with an auxiliary head. label_smoothing: of the
    targets. repeats: repeated augmentation.
    """

    crop_scale: tuple[Share, Share] = Field(default=(0.08, 1.0), strict=False)
    hflip: Share = 0.5
    color_jitter: float = Field(default=0.0, ge=0)
    auto_augment: str | None = None
    interpolation: Literal["bicubic", "bilinear", "lanczos", "random"] = "bicubic"
    erasing: Share = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    mix_prob: Share = 1.0
    mix_switch: Share = 0.5
    mix_token: Alpha = 0.0
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    repeats: int = Field(default=1, ge=1)
    crop_pct: float = Field(default=0.875, gt=0, le=1)
    crop_mode: CropMode = "center"


class DataSettings(Settings):
    """What `ImageDataModule` does with the images of any dataset.

    image_size: S in pixels. batch_size: images per process and step. num_workers: loader
    processes, 0 loads in the main process; "auto": see `ImageDataModule.num_workers`. seed: of
    order and augmentation. on_error: "raise" stops at the first unreadable image; "skip" takes its
    neighbour in training and leaves it out of evaluation. cache: "device" decodes the images once
    and keeps them on the training device. train_split, val_split: names of the splits. mean, std:
    of the channels; None: ImageNet's. exif: rotate photographs as their EXIF orientation says.
    label_maps: folder with dense labels of the training images.
    """

    image_size: int = Field(ge=2)
    batch_size: int = Field(default=64, ge=1)
    num_workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = 0
    seed: int = Field(default=0, ge=0)
    augment: AugmentSettings = AugmentSettings()
    on_error: Literal["raise", "skip"] = "raise"
    cache: Literal["device"] | None = None
    train_split: str = "train"
    val_split: str = "val"
    mean: Means | None = None
    std: Deviations | None = None
    exif: bool = False
    label_maps: str | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """Of images in evaluation, where the interpolation "random" of training is bicubic."""
        names = ("interpolation", "crop_pct", "crop_mode")
        values = {name: getattr(self.augment, name) for name in names}
        values |= {"mean": self.mean, "std": self.std}
        return Preprocessing(**{k: v for k, v in values.items() if v not in (None, "random")})

    @model_validator(mode="after")
    def _compatible(self) -> "DataSettings":
        augment = self.augment
        mixes = next((name for name in ("mixup", "cutmix") if getattr(augment, name)), None)
        if mixes and self.batch_size % 2:
            raise ValueError(
                f"augment.{mixes} mixes images in pairs; data.batch_size={self.batch_size} must be "
                "even"
            )
        changes = {
            "auto_augment=null": augment.auto_augment,
            "color_jitter=0": augment.color_jitter,
        }
        changes["interpolation=bicubic"] = augment.interpolation not in ("bilinear", "bicubic")
        needed = " ".join(f"augment.{change}" for change, needs in changes.items() if needs)
        if self.cache and needed:
            raise ValueError(
                f"data.cache={self.cache} crops and flips images, and changes no colors: set "
                f"{needed}, or data.cache=null"
            )
        if self.label_maps is None:
            return self
        if mixes:
            raise ValueError(
                f"augment.{mixes}={getattr(augment, mixes)} mixes images, but not their label "
                f"maps; with data.label_maps set augment.{mixes}=0, and augment.mix_token=1 to mix "
                "tokens"
            )
        if not (augment.auto_augment or "rand").startswith("rand"):
            raise ValueError(
                f"augment.auto_augment={augment.auto_augment} moves images, but not their label "
                "maps; with data.label_maps only RandAugment does, such as rand-m9-mstd0.5-inc1"
            )
        for name, off in (("exif", "false"), ("cache", "null")):
            if value := getattr(self, name):
                raise ValueError(
                    f"data.{name}={value} leaves label maps as they are; with data.label_maps set "
                    f"data.{name}={off}"
                )
        return self


def _required(hint: str) -> BeforeValidator:
    """A value that has no default, with what to pass."""

    def check(value: Any) -> Any:
        if value is None:
            raise ValueError(hint)
        return value

    return BeforeValidator(check)


class HeldOutSettings(Settings):
    """Of the images that are held out where there is no split, see `lfvit.data.folders.hold_out`.

    None: a tenth in training, all in the evaluation of a model that was not trained on them.
    """

    val_fraction: float | None = Field(default=None, gt=0, le=1)
    split_seed: int | None = Field(default=None, ge=0)


class FolderSettings(HeldOutSettings):
    """Of `ImageFolder`."""

    root: Annotated[str, _required("pass data.root=DIR, the folder of photographs")]


class ClutterSettings(FolderSettings):
    """Of `ClutteredFolder`, which reads its photographs as they are."""

    image_size: int = Field(ge=48)
    exif: Literal[False] = False
    label_maps: None = None


class HuggingFaceSettings(HeldOutSettings):
    """Of `HuggingFaceDataset`."""

    path: Annotated[str, _required("pass data.path=NAME of a dataset, or data.path=DIR")]
    root: str | None = None
    name: str | None = None
    data_files: dict[str, str | list[str]] | None = None
    image: str = "image"
    label: str = "label"
    classes: str | None = None


class NeedleSettings(Settings):
    """Of `NeedleSet`."""

    train_images: int = Field(default=1, ge=1)
    val_images: int = Field(default=1, ge=1)
    num_classes: int = Field(default=2, ge=2, le=8)
    image_size: int = Field(ge=48)


DATASETS: dict[str, type[Settings]] = {
    "lfvit.data.ImageFolder": FolderSettings,
    "lfvit.data.ClutteredFolder": ClutterSettings,
    "lfvit.data.HuggingFaceDataset": HuggingFaceSettings,
    "lfvit.data.NeedleSet": NeedleSettings,
}
"""Settings of the datasets that come with lfvit, by their `_target_`."""


def data_settings(group: Mapping[str, Any]) -> DataSettings:
    """Those of the DataModule in the group data, as plain values; errors as `check_data`."""
    augment = validate(AugmentSettings, group.get("augment") or {}, "augment")
    common = {key: group[key] for key in group if key in DataSettings.model_fields}
    return validate(DataSettings, {**common, "augment": augment}, "data")


def check_data(group: Mapping[str, Any]) -> tuple[DataSettings, dict[str, Any]]:
    """Check the group data, as plain values.

    Returns:
        The settings of the DataModule, and the rest, which are arguments of the dataset.

    Raises:
        ConfigError: names a setting, its value and what would be valid.
    """
    settings = {key: value for key, value in group.items() if key != "dataset" and key[0] != "_"}
    dataset = {key: value for key, value in group["dataset"].items() if key[0] != "_"}
    checked = data_settings(settings)
    common = {key: settings[key] for key in settings if key in DataSettings.model_fields}
    options = {key: settings[key] for key in settings if key not in common}
    schema = DATASETS.get(group["dataset"]["_target_"])
    if schema is not None:
        if "root" in options and "root" not in schema.model_fields:
            raise UnknownSettingError(
                "data.root is no setting of this kind of data; for a folder of photographs pass "
                f"data=imagefolder data.root={options['root']}"
            )
        shared = {key: common[key] for key in common if key in schema.model_fields}
        validate(schema, {**shared, **options, **dataset}, "data")
    return checked, options

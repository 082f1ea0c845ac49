"""Settings of a training, checked without PyTorch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lfvit.errors import ConfigError
from lfvit.utils.validation import Settings, plain, validate

NonNegative = Annotated[float, Field(ge=0)]


class Schedule(Settings):
    """What a recipe says beyond epochs, optimizer, learning-rate scheduler and averaged weights.

    second_start: when the second pass starts to train; before, only the first one does, on the
    half-resolution view. selection_start: when the second pass starts to select instead of seeing
    the whole image. Both in epochs (whole number) or as a fraction of all epochs (below 1). loss:
    of two passes, see `lfvit.training.losses`. lr_batch: images per optimizer step for which
    ``optimizer.lr`` is meant; the learning rate scales linearly with the global batch.
    layer_decay: from each layer's learning rate to that of the one before it. backbone_lr: factor
    on the learning rate of all weights but those of a reducer, and backbone_start: epoch until
    which it is 0. frozen: weights whose names contain one of these never change.
    drop_path_rate: stochastic depth of the last block. distill_weight: of the KL divergence of
    every pass from the teacher. teacher: its checkpoint; None: the model as training found it,
    without its reducer. aux_weight: of the patch tokens' loss, for backbones with an auxiliary
    head.
    """

    second_start: NonNegative = 0
    selection_start: NonNegative = 0
    loss: Literal["ce_kl", "ce_ce"] = "ce_kl"
    lr_batch: Annotated[int, Field(ge=1)] = 512
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    backbone_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    backbone_start: Annotated[int, Field(ge=0)] = 0
    frozen: list[str] = []  # noqa: RUF012  (pydantic copies it)
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distill_weight: NonNegative = 0.0
    teacher: str | None = None
    aux_weight: NonNegative = 1.0

    @field_validator("second_start", "selection_start")
    @classmethod
    def _whole_epochs(cls, value: float) -> float:
        if value > 1 and value % 1:
            raise ValueError("a whole number of epochs, or a fraction below 1")
        return value

    def selection_epoch(self, max_epochs: int) -> int:
        """First epoch (0-based) in which the second pass selects, of `max_epochs`."""
        return _first_epoch(self.selection_start, max_epochs)

    def second_epoch(self, max_epochs: int) -> int:
        """First epoch (0-based) in which the second pass trains, of `max_epochs`."""
        return _first_epoch(self.second_start, max_epochs)


def _first_epoch(start: float, max_epochs: int) -> int:
    return round(start * max_epochs) if 0 < start < 1 else int(start)


class TrainSettings(Settings):
    """The plain keys of train.yaml, which explains them."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threshold: NonNegative | None
    pretrained: bool
    init_from: str | None
    ckpt_path: str | None
    compile: bool
    deterministic: bool
    repeat: bool | None
    evaluate: bool | None
    overwrite: bool


def check_training(cfg: Mapping[str, Any]) -> Schedule:
    """Check the recipe and the plain keys of a composed training config.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    names = TrainSettings.model_fields
    start = validate(TrainSettings, {name: cfg[name] for name in names if name in cfg})
    schedule = validate(Schedule, plain(cfg["schedule"]), "schedule")
    trainer = cfg["trainer"]
    for name in ("limit_train_batches", "limit_val_batches", "max_steps"):
        monitors = [n for n, c in cfg.get("callbacks", {}).items() if c and c.get("monitor")]
        if trainer.get(name) == 0 and (name != "limit_val_batches" or monitors):
            advice = "leave it out"
            if name == "limit_val_batches":
                others = " ".join(f"callbacks.{monitor}=null" for monitor in monitors)
                advice += f", or leave out what waits for a validation: {others}"
            raise ConfigError(f"trainer.{name}=0 leaves nothing to do; {advice}")
    max_epochs = trainer["max_epochs"]
    if not isinstance(max_epochs, int) or max_epochs < 1:
        raise ConfigError(f"trainer.max_epochs={max_epochs!r} must be a whole number, 1 or more")
    for name in ("second_start", "selection_start"):
        if (epoch := getattr(schedule, name)) > max_epochs:
            raise ConfigError(
                f"schedule.{name}={epoch} is after the last of trainer.max_epochs={max_epochs}"
            )
    from_weights = start.pretrained or start.init_from or start.ckpt_path
    if schedule.distill_weight and not (from_weights or schedule.teacher):
        raise ConfigError(
            f"schedule.distill_weight={schedule.distill_weight} learns from the weights training "
            "starts with; pass pretrained=true or init_from=FILE, name a schedule.teacher, or set "
            "it to 0"
        )
    slow = {"layer_decay": 1.0, "backbone_lr": 1.0, "backbone_start": 0, "frozen": []}
    for name, usual in slow.items():
        if (value := getattr(schedule, name)) != usual and not from_weights:
            raise ConfigError(
                f"schedule.{name}={value} goes easy on weights that were trained before, and these "
                "are random; pass pretrained=true or init_from=FILE, or for random weights "
                f"schedule.{name}={usual}"
            )
    if schedule.teacher and not schedule.distill_weight:
        raise ConfigError(
            f"schedule.teacher={schedule.teacher} teaches with schedule.distill_weight, which is 0"
        )
    if cfg["backbone"].get("family") != "lv_vit":
        for group, name in (("augment", "mix_token"), ("data", "label_maps")):
            if value := cfg[group].get(name):
                raise ConfigError(
                    f"{group}.{name}={value} needs a backbone with an auxiliary head on its patch "
                    "tokens, such as backbone=lv_vit_small; leave it out for others"
                )
    return schedule

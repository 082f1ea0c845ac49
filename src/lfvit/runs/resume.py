"""Continuing a training: which checkpoint, and whether this run may go on from it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lfvit.data import ImageDataModule
from lfvit.errors import CheckpointError, ConfigError
from lfvit.models.checkpoints import read_file
from lfvit.models.zoo import locate
from lfvit.runs.identity import digest, flatten, settings_of_weights
from lfvit.runs.record import CheckpointRecord, read_record, recipe_of
from lfvit.runs.sweeps import in_sweep
from lfvit.training.checkpointing import LAST
from lfvit.utils.atomic_io import read_json
from lfvit.utils.validation import plain

AUTO = "auto"


class Resumed(NamedTuple):
    """What a checkpoint says about the training it continues.

    step: optimizer steps taken. within_epoch: whether its epoch had begun and not ended.
    """

    record: CheckpointRecord
    step: int
    within_epoch: bool


def last_of(run_dir: str | Path) -> Path:
    """Where a run keeps the checkpoint to continue from."""
    return Path(run_dir) / "checkpoints" / LAST


def check_resume(cfg: DictConfig) -> Resumed | None:
    """A run can only be continued as it was started; None for one that starts.

    Raises:
        CheckpointError: unreadable, no checkpoint of a training, or of another one.
        ConfigError: another start is asked for as well.
    """
    if cfg.ckpt_path is None:
        return None
    path = cfg.ckpt_path = str(locate(cfg.ckpt_path))
    if cfg.init_from is not None:  # as in a command that is repeated
        config = Path(path).absolute().parents[1] / "config.yaml"
        began = OmegaConf.load(config) if config.is_file() else OmegaConf.create()
        if not _same_file(OmegaConf.select(began, "init_from"), cfg.init_from):
            raise ConfigError(
                f"init_from={cfg.init_from} starts a new run, and ckpt_path={path} continues one "
                "that did not start from it; pass one of them"
            )
        cfg.init_from = None
    try:
        content = read_file(path)
    except CheckpointError as error:
        best = Path(str(path)).with_name("best.ckpt")
        raise CheckpointError(
            f"{error}. Nothing was started anew: put a copy of it back, "
            + (f"continue from {shlex.quote(f'ckpt_path={best}')}, " if best.exists() else "")
            + "or remove it to begin again"
        ) from error
    record = read_record(content, path)
    if record is None or "loops" not in content:
        raise CheckpointError(
            f"{path}: not a checkpoint of a training run; to start from its weights pass "
            "init_from= instead of ckpt_path="
        )
    keys = ("method", "backbone", "reducer", "image_size", "seed")
    then = flatten({key: getattr(record, key) for key in keys} | record.recipe)
    now = flatten({key: plain(cfg[key]) for key in keys} | recipe_of(cfg))
    if different := _first_difference(then, now):
        raise CheckpointError(
            f"{path}: was trained with other settings ({different}); repeat the run's own settings "
            "to resume it, or pass init_from= to start a new run from its weights"
        )
    try:
        epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]
        within, step = bool(epoch["started"] > epoch["processed"]), int(content["global_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: does not say how far its training was ({error!r}); use an earlier "
            "checkpoint, or pass init_from= to start a new run from its weights"
        ) from error
    return Resumed(record, step, within)


def _same_file(one: str | None, other: str) -> bool:
    """Whether two paths can be of one file, which may have moved with the folder of its run."""
    parts = [reversed(Path(path or "").parts) for path in (one, other)]
    ends = list(zip(*parts, strict=False))[:4]  # as NAME/seed0/checkpoints/last.ckpt
    return bool(ends) and all(ours == theirs for ours, theirs in ends)


def check_data(
    cfg: DictConfig, resumed: Resumed | None, data: ImageDataModule, trainer: L.Trainer
) -> dict[str, int]:
    """The images, and their division among steps and processes, have to be the checkpoint's: all
    of it within an epoch, between epochs only the images per optimizer step.

    Returns:
        train_images, batch_size, processes, accumulate_grad_batches: for later checkpoints.

    Raises:
        CheckpointError: naming what is different.
    """
    data.setup()
    layout = {
        "train_images": len(data.train_images),
        "batch_size": data.batch_size,
        "processes": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }
    if resumed is None:
        return layout
    then, classes = resumed.record.layout or layout, resumed.record.classes
    if data.classes != classes:
        raise CheckpointError(
            f"{cfg.ckpt_path}: was trained on other classes ({classes[:3]}..., now "
            f"{data.classes[:3]}...); resume with the same data"
        )
    if then["train_images"] != layout["train_images"]:
        raise CheckpointError(
            f"{cfg.ckpt_path}: was trained on {then['train_images']} images, now there are "
            f"{layout['train_images']}; resume with the same data"
        )
    if then == layout or (not resumed.within_epoch and _per_step(then) == _per_step(layout)):
        return layout
    where = "in the middle of an epoch, " if resumed.within_epoch else ""
    raise CheckpointError(
        f"{cfg.ckpt_path}: was saved {where}with {_words(then)}, not {_words(layout)}; resume it "
        + ("with the same" if where else "with the same number of images per optimizer step")
    )


def _per_step(layout: Mapping[str, int]) -> tuple[int, int]:
    """Images of one optimizer step, and optimizer steps of one epoch."""
    images = layout["batch_size"] * layout["processes"] * layout["accumulate_grad_batches"]
    batches = layout["train_images"] // layout["processes"] // layout["batch_size"]
    return images, -(-batches // layout["accumulate_grad_batches"])


def _words(layout: Mapping[str, int]) -> str:
    return (
        f"data.batch_size={layout['batch_size']} in {layout['processes']} process(es) and "
        f"trainer.accumulate_grad_batches={layout['accumulate_grad_batches']}"
    )


def check_own_directory(cfg: DictConfig) -> None:
    """``ckpt_path=auto`` needs a run directory that is stated, and holds no other training.

    Raises:
        ConfigError: the run directory is a new one for every start, or holds another training.
    """
    if _is_new_each_time(cfg):
        fix = "state it with hydra.run.dir=DIR"
        if in_sweep():
            fix = "leave ckpt_path out: a sweep continues what was interrupted by itself"
        raise ConfigError(
            f"ckpt_path={AUTO} continues what is in the run directory, but {cfg.run_dir} is a new "
            f"one for every start; {fix}"
        )
    run = read_json(Path(cfg.run_dir) / "run.json")
    if not run:
        return
    if "settings" not in run:
        raise ConfigError(
            f"{cfg.run_dir} was written by another version of lfvit, or continues a checkpoint "
            "from elsewhere; pass another directory, or ckpt_path=FILE to continue a checkpoint"
        )
    settings = settings_of_weights(cfg)
    if run["identity"] != digest(settings):
        different = _first_difference(run["settings"], settings)
        raise ConfigError(
            f"{cfg.run_dir} holds a training with other settings ({different}); pass another "
            f"directory, or its own settings with ckpt_path={AUTO}"
        )


def _first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In words, of settings by their full names."""
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            return f"{key}={then.get(key)} there, {now.get(key)} here"
    return None


def _is_new_each_time(cfg: DictConfig) -> bool:
    """Whether Hydra has put the time of day into the run directory."""
    unresolved: Any = OmegaConf.to_container(cfg, resolve=False)
    if "hydra:" not in str(unresolved["run_dir"]) or not HydraConfig.initialized():
        return False
    hydra_cfg: Any = OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False)
    return "${now:" in hydra_cfg["hydra"]["sweep" if in_sweep() else "run"]["dir"]

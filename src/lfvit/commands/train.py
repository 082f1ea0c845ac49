"""`train(cfg)`: from a composed config to a trained model and its metrics."""

import logging
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, Timer, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import nn

from lfvit.data import ImageDataModule
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs, pass_macs
from lfvit.models.checkpoints import load_checkpoint, read_file
from lfvit.models.reduction import unreduced
from lfvit.runs.configs import quote_path
from lfvit.runs.datasets import check_split, make_data
from lfvit.runs.directory import start_run, training_record
from lfvit.runs.models import build_model, load_trained, with_preprocessing
from lfvit.runs.provenance import commit, machine
from lfvit.runs.record import make_record
from lfvit.runs.resume import check_data, check_resume, last_of
from lfvit.runs.trainers import trainer_settings
from lfvit.tracking.loggers import summarise, tracked, tracking_record, training_summary
from lfvit.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, stopped_early
from lfvit.training.module import Classifier
from lfvit.training.optimizers import build_lr_scheduler, build_optimizer
from lfvit.training.settings import check_training
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.paths import program
from lfvit.utils.signals import StopSignals
from lfvit.utils.validation import check_choice, instantiate, plain

log = logging.getLogger(__name__)

NEEDS_LOGGERS = "LogPredictions"
"""A callback that is left out where nothing is logged."""


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train as configured; also callable from tests and from other code.

    Settings are checked before any data is read. Writes into ``cfg.run_dir``: the composed config,
    commit, diff, environment, run.json, checkpoints and metrics.json.

    Returns:
        The contents of metrics.json.

    Raises:
        LFViTError: anything the user can mend.
    """
    check(cfg)
    resumed = check_resume(cfg)
    record, step = (resumed.record, resumed.step) if resumed else (None, None)
    with (
        StopSignals() as signals,
        training_record(cfg) as run,
        tracked(cfg, "train", record, step) as loggers,
    ):
        run_dir = start_run(cfg)
        L.seed_everything(cfg.seed, verbose=False)
        trainer = build_trainer(cfg, loggers, signals)
        cfg = with_preprocessing(cfg, record)
        data = make_data(plain(cfg.data))
        layout = check_data(cfg, resumed, data, trainer)
        check_split(cfg.init_from, data)
        check_interval(cfg, layout)
        module = build_module(cfg, data.classes)
        module.record |= {"tracking": tracking_record(loggers), "layout": layout}
        say_start(cfg, trainer, module, step)
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        reason = unfinished(trainer, cfg.trainer.max_epochs)
        run |= {"error": reason} if reason else {}
        metrics = collect_metrics(trainer, module, data)
        if is_main_process():
            write_json(run_dir / "metrics.json", metrics)
            say_end(cfg, module, metrics, reason)
        if loggers:
            summarise(loggers, training_summary(metrics, module.model), trainer.global_step)
    return metrics


def say_start(cfg: DictConfig, trainer: L.Trainer, module: Classifier, step: int | None) -> None:
    """What is trained, from which weights, on what device; beside what data and weights log."""
    if not is_main_process():
        return
    start = f"timm's weights of {cfg.backbone.get('timm')}" if cfg.pretrained else "random weights"
    if cfg.ckpt_path is not None:
        start = f"step {step} of {cfg.ckpt_path}"
    elif cfg.init_from is not None:
        start = f"the weights of {cfg.init_from}"
    parameters = sum(p.numel() for p in module.model.parameters())
    macs = " + ".join(f"{value / 1e9:.3g}" for value in pass_macs(module.model))
    device = trainer.strategy.root_device.type
    log.info("%s: %s parameters, %s GMACs", cfg.method.name, f"{parameters:,}", macs)
    log.info("starts from %s", start)
    log.info(
        "on %d x %s, precision %s; %s", trainer.world_size, device, trainer.precision, machine()
    )
    log.info("run directory: %s", cfg.run_dir)


def say_end(
    cfg: DictConfig, module: Classifier, metrics: dict[str, Any], reason: str | None
) -> None:
    """How it ended, which threshold to use and where things are."""
    last = last_of(cfg.run_dir)
    how = f"stopped: {reason}"
    if reason is None:
        how = f"done after epoch {metrics['epochs']} of {cfg.trainer.max_epochs}"
    top1 = f", top-1 {metrics['val/top1']:.2f} %" if "val/top1" in metrics else ""
    log.info("%s, %.1f minutes%s", how, metrics["train_seconds"] / 60, top1)
    if module.advice:
        log.info("threshold: %s", module.advice)
    if last.exists():
        weights = quote_path(f"ckpt_path={last}")
        if reason:
            log.info("to continue, repeat the command with %s", weights)
        log.info("to evaluate: %s %s", program("evaluate"), weights)
    log.info("written to %s: %s", cfg.run_dir, "metrics.json, checkpoints/, config.yaml")


def check(cfg: DictConfig, weights_exist: bool = True) -> None:
    """Refuse settings that cannot work, before any data is read.

    Args:
        cfg: a composed training config.
        weights_exist: whether the file of ``init_from`` should be there already.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    module = build_module(cfg, ["", ""], load=False)
    for name, settings in cfg.callbacks.items():
        monitor = settings.get("monitor") if isinstance(settings, DictConfig) else None
        if str(monitor).startswith("val/"):  # others may be logged by a callback
            check_choice(f"callbacks.{name}.monitor", monitor, module.validated)
    optimizer = build_optimizer(module.model, module.optimizer)
    if module.lr_scheduler is not None:
        build_lr_scheduler(optimizer, module.lr_scheduler, cfg.trainer.max_epochs, steps=100)
    if cfg.init_from is not None and cfg.ckpt_path is None and weights_exist:
        read_file(cfg.init_from)


def check_interval(cfg: DictConfig, layout: dict[str, int]) -> None:
    """Refuse limits that leave no batch of an epoch, and validations that would never come.

    Args:
        cfg: a composed training config.
        layout: see `lfvit.runs.resume.check_data`.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    batches = layout["train_images"] // layout["processes"] // layout["batch_size"]
    limit = cfg.trainer.get("limit_train_batches")
    if isinstance(limit, float) and int(limit * batches) < 1:
        raise ConfigError(
            f"trainer.limit_train_batches={limit} leaves none of the {batches} batches of an epoch"
        )
    interval = cfg.trainer.get("val_check_interval")
    left = min(batches, limit) if isinstance(limit, int) else batches
    every = cfg.trainer.get("check_val_every_n_epoch", 1)
    if isinstance(interval, int) and every is not None and interval > left:
        raise ConfigError(
            f"trainer.val_check_interval={interval} is longer than an epoch, which has {left} "
            "batches; pass trainer.check_val_every_n_epoch=null to count over epochs"
        )


def build_trainer(
    cfg: DictConfig, loggers: list[Logger], signals: StopSignals | None = None
) -> L.Trainer:
    """Lightning's Trainer with the configured callbacks.

    Args:
        cfg: a composed training config.
        loggers: open ones.
        signals: that stop the training after a step, with a checkpoint.

    Raises:
        ConfigError: a setting that Lightning refuses.
    """
    settings = trainer_settings(cfg)
    callbacks = build_callbacks(cfg, bool(loggers))
    last = next((c for c in callbacks if isinstance(c, LastCheckpoint)), None)
    if last is None:
        callbacks.append(last := LastCheckpoint())  # saves nothing, but stops
    last.signals = signals or last.signals
    try:
        return L.Trainer(
            **settings | {"plugins": [*(settings.get("plugins") or []), AtomicCheckpointIO()]},
            enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.run_dir,
            use_distributed_sampler=False,  # the DataModule's samplers know their rank
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def build_callbacks(cfg: DictConfig, logs: bool = True) -> list[L.Callback]:
    """The callbacks of the config; one that is null is left out.

    Args:
        cfg: a composed training config.
        logs: whether there are loggers.

    Raises:
        ConfigError: an entry that is no callback.
    """
    callbacks: list[L.Callback] = []
    averages: list[L.Callback] = []
    for name, settings in plain(cfg.callbacks).items():
        if settings is None or (name == "progress" and not sys.stdout.isatty()):
            continue
        if not isinstance(settings, dict):
            raise ConfigError(
                f"callbacks.{name}={settings!r} is no callback; callbacks.{name}=null leaves it out"
            )
        target = settings.get("_target_")  # callbacks=null keeps what the schedule says of ema
        if target is not None and (logs or not target.endswith(NEEDS_LOGGERS)):
            callback = instantiate(f"callbacks.{name}", settings)
            (averages if isinstance(callback, WeightAveraging) else callbacks).append(callback)
    # averaged weights leave the model at the end of a validation: after all others have used them
    return callbacks + averages


def build_module(cfg: DictConfig, classes: list[str], load: bool = True) -> Classifier:
    """The model of the config for these classes, ready to train.

    load: with the weights it starts from, if the config names some.
    """
    schedule = check_training(cfg)
    pretrained = cfg.pretrained and (load or "timm" not in cfg.backbone)  # which has none
    model = build_model(
        cfg, len(classes), drop_path_rate=schedule.drop_path_rate, pretrained=pretrained
    )
    if load and cfg.init_from is not None:
        load_checkpoint(model, cfg.init_from, new_head=True)
    teacher = None
    if schedule.distill_weight:
        file = schedule.teacher
        teacher = unreduced(model) if file is None else load_teacher(cfg, file, classes, load)
    return Classifier(
        model,
        schedule,
        num_classes=len(classes),
        optimizer=instantiate_partial(cfg, "optimizer"),
        lr_scheduler=instantiate_partial(cfg, "lr_scheduler"),
        selection_epoch=schedule.selection_epoch(cfg.trainer.max_epochs),
        second_epoch=schedule.second_epoch(cfg.trainer.max_epochs),
        threshold=cfg.threshold,
        seed=cfg.seed,
        teacher=teacher,
        record=make_record(cfg, classes),
        compile_passes=cfg.compile,
    )


def load_teacher(cfg: DictConfig, path: str, classes: list[str], known: bool) -> nn.Module:
    """The model that teaches another one of the same classes and image size.

    known: whether `classes` are those of the data.
    """
    teacher, record = load_trained(path)
    if record.image_size != cfg.image_size:
        raise ConfigError(
            f"schedule.teacher={path} was trained with image_size={record.image_size}, and the "
            f"images here have {cfg.image_size}; the two have to be the same"
        )
    expected = make_record(cfg, classes)["preprocessing"]
    for key in ("mean", "std"):
        if known and (theirs := getattr(record.preprocessing, key)) != expected[key]:
            raise ConfigError(
                f"schedule.teacher={path} was trained with data.{key}={list(theirs)}, and the "
                f"images here are normalised with {list(expected[key])}; pass data.{key} as there"
            )
    if known and record.classes != classes:
        differ = sorted(set(record.classes) ^ set(classes))[:3] or ["their order"]
        raise ConfigError(
            f"schedule.teacher={path} knows other classes than those of the data; they differ in "
            f"{', '.join(differ)}"
        )
    return teacher


def instantiate_partial(cfg: DictConfig, group: str) -> Any:
    """A class with its arguments, those that are null left out; None if no class is named."""
    settings = {key: value for key, value in plain(cfg[group]).items() if value is not None}
    return instantiate(group, settings) if "_target_" in settings else None


def unfinished(trainer: Any, max_epochs: int) -> str | None:
    """What ended the training before its last epoch, in words; None if it came to its end."""
    epochs, batches = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current
    whole = batches.completed == trainer.num_training_batches
    if stopped_early(trainer) or (whole and epochs >= max_epochs):
        return None
    if trainer.fast_dev_run:
        return "trainer.fast_dev_run tries a few batches"
    timers = (c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer))
    limit = "a callback"
    if trainer.global_step == trainer.max_steps:
        limit = f"trainer.max_steps={trainer.max_steps}"
    elif any(left is not None and left <= 0 for left in timers):
        limit = "trainer.max_time"
    return f"{limit} ended it {'after' if whole else 'in'} epoch {epochs} of {max_epochs}"


def collect_metrics(
    trainer: L.Trainer, module: Classifier, data: ImageDataModule
) -> dict[str, Any]:
    """The contents of metrics.json after a training."""
    (last,) = (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))
    latest = {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics: dict[str, Any] = dict(sorted({**last.progress["metrics"], **latest}.items()))
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
        metrics[f"best_{checkpoint.monitor}"] = checkpoint.best_model_score.item()
        metrics["best_checkpoint"] = Path(checkpoint.best_model_path).name
    return metrics | {
        "gmacs": count_macs(module.model) / 1e9,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "train_images": len(data.train_images),
        "val_images": len(data.val_images),
        "skipped_images": data.num_skipped,
        "train_seconds": round(last.seconds, 1),
        "commit": commit(),
        "machine": machine(),
    }

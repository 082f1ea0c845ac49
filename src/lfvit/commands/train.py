"""`train(cfg)`: from a composed config to a trained model and its metrics."""

import logging
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import nn

from lfvit.data import ImageDataModule
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs
from lfvit.models.checkpoints import load_checkpoint
from lfvit.models.reduction.patch import unreduced
from lfvit.models.weight_files import read_file
from lfvit.runs.devices import trainer_settings
from lfvit.runs.directory import start_run, training_record
from lfvit.runs.provenance import commit, machine
from lfvit.runs.resume import LAYOUT, check_data, check_resume
from lfvit.runs.setup import build_model, make_record
from lfvit.tracking.loggers import TRACKING, summarise, tracked, tracking_record
from lfvit.tracking.summaries import training_summary
from lfvit.training.checkpointing import AtomicCheckpointIO, LastCheckpoint
from lfvit.training.module import Classifier
from lfvit.training.optimizers import build_lr_scheduler, build_optimizer
from lfvit.training.reducers import freeze_unused_weights, learned_reducer
from lfvit.training.settings import Schedule
from lfvit.training.token_labels import has_aux_head
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.seeding import told_of_random_order
from lfvit.utils.signals import StopSignals
from lfvit.utils.validation import check_range, check_switch, check_whole, plain, validate

log = logging.getLogger(__name__)


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
    record, step = (None, None) if resumed is None else (resumed.record, resumed.step)
    with (
        StopSignals() as stop,
        training_record(cfg),
        tracked(cfg, "train", record, step) as loggers,
    ):
        run_dir = start_run(cfg)
        L.seed_everything(cfg.seed, verbose=False)
        trainer = build_trainer(cfg, loggers, stop)
        data: ImageDataModule = hydra.utils.instantiate(cfg.data)
        layout = check_data(cfg, resumed, data, trainer)
        module = build_module(cfg, data.classes)
        module.record |= {TRACKING: tracking_record(loggers), LAYOUT: layout}
        with told_of_random_order(cfg.deterministic):
            trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        metrics = _metrics(trainer, module, data)
        if is_main_process():
            write_json(run_dir / "metrics.json", metrics)
        summarise(loggers, training_summary(metrics, module.model), trainer.global_step)
    return metrics


def build_trainer(
    cfg: DictConfig, loggers: list[Logger], stop: StopSignals | None = None
) -> L.Trainer:
    """Lightning's Trainer with the configured callbacks.

    Args:
        cfg: a composed training config.
        loggers: open ones.
        stop: asked after every step whether to save and stop.

    Raises:
        ConfigError: a setting Lightning refuses.
    """
    callbacks = build_callbacks(cfg)
    if not loggers:
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    if not any(isinstance(c, LastCheckpoint) for c in callbacks):
        callbacks.append(LastCheckpoint())  # saves nothing, but stops
    for callback in callbacks:
        if stop is not None and isinstance(callback, LastCheckpoint):
            callback.stop = stop
    settings = trainer_settings(cfg)
    plugins = [*(settings.pop("plugins", None) or []), AtomicCheckpointIO()]
    try:
        return L.Trainer(
            **settings,
            plugins=plugins,
            enable_progress_bar=cfg.callbacks.get("progress") is not None,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.run_dir,
            use_distributed_sampler=False,  # the DataModule's samplers know their rank
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def build_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callbacks of the config.

    Raises:
        ConfigError: a value that is no callback.
    """
    callbacks = []
    for name, settings in cfg.callbacks.items():
        if settings and not isinstance(settings, DictConfig):
            raise ConfigError(
                f"callbacks.{name}={settings} is no callback; leave it out with "
                f"callbacks.{name}=null"
            )
        if settings and "_target_" in settings:
            callbacks.append(hydra.utils.instantiate(settings))
    # last, since it takes the averaged weights out of the model when a validation ends
    return sorted(callbacks, key=lambda callback: isinstance(callback, WeightAveraging))


def build_module(cfg: DictConfig, classes: list[str]) -> Classifier:
    """The model of the config for these classes, with its initial weights, ready to train."""
    schedule = validate(Schedule, plain(cfg.schedule), "schedule")
    model = build_model(
        cfg, len(classes), drop_path_rate=schedule.drop_path_rate, pretrained=cfg.pretrained
    )
    if cfg.init_from is not None:
        load_checkpoint(model, cfg.init_from, new_head=True)
    teacher = unreduced(model) if schedule.distill_weight else None
    freeze_unused_weights(model, cfg.image_size)
    return Classifier(
        model,
        schedule,
        optimizer=instantiate_partial(cfg.optimizer),
        lr_scheduler=instantiate_partial(cfg.lr_scheduler),
        selection_epoch=schedule.selection_epoch(cfg.trainer.max_epochs),
        teacher=teacher,
        num_classes=len(classes),
        threshold=cfg.threshold,
        seed=cfg.seed,
        record=make_record(cfg, classes),
        compile_passes=cfg.compile,
    )


def instantiate_partial(cfg: DictConfig) -> Any:
    """A class with its arguments, those that are null left out; None if no class is named."""
    settings = {key: value for key, value in plain(cfg).items() if value is not None}
    return hydra.utils.instantiate(settings) if "_target_" in settings else None


def check(cfg: DictConfig, weights_exist: bool = True) -> None:
    """Refuse settings that cannot work, before any data is read.

    Args:
        cfg: a composed training config.
        weights_exist: whether the file of ``init_from`` should be there already.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    schedule = validate(Schedule, plain(cfg.schedule), "schedule")
    epochs = cfg.trainer.max_epochs
    check_whole("trainer.max_epochs", epochs, 1)
    check_range("schedule.selection_start", schedule.selection_start, 0, epochs)
    model = build_model(cfg, num_classes=2)  # every check of the model
    optimizer = build_optimizer(model, instantiate_partial(cfg.optimizer))
    if (lr_scheduler := instantiate_partial(cfg.lr_scheduler)) is not None:
        build_lr_scheduler(optimizer, lr_scheduler, epochs, steps=epochs)
    _check_token_labels(cfg, model)
    learned_reducer(model, cfg.compile)
    if cfg.pretrained and "timm" not in cfg.backbone:
        build_model(cfg, num_classes=2, pretrained=True)
    if schedule.distill_weight and not (cfg.pretrained or cfg.init_from or cfg.ckpt_path):
        raise ConfigError(
            f"schedule.distill_weight={schedule.distill_weight} learns from the weights training "
            "starts with; pass pretrained=true or init_from=FILE, or set it to 0"
        )
    if cfg.init_from is not None and cfg.ckpt_path is not None:
        raise ConfigError(
            "init_from starts a new run and ckpt_path continues one; pass one of them"
        )
    if cfg.init_from is not None and weights_exist:
        read_file(cfg.init_from)
    check_whole("seed", cfg.seed, 0)
    check_range("threshold", cfg.threshold, 0)
    check_switch("deterministic", cfg.deterministic)
    check_switch("compile", cfg.compile)


def _check_token_labels(cfg: DictConfig, model: nn.Module) -> None:
    """Settings of training patch tokens need a model whose patch tokens can learn."""
    for group, name in (
        ("schedule", "aux_weight"),
        ("augment", "mix_token"),
        ("data", "label_maps"),
    ):
        value = cfg[group].get(name)
        if value and not has_aux_head(model):
            raise ConfigError(
                f"{group}.{name}={value} needs a backbone with an auxiliary head on its patch "
                "tokens, such as backbone=lv_vit_small; leave it out for others"
            )


def _metrics(trainer: L.Trainer, module: Classifier, data: ImageDataModule) -> dict[str, Any]:
    (last,) = (c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint))
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    metrics: dict[str, Any] = dict(sorted({**last.progress["metrics"], **found}.items()))
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

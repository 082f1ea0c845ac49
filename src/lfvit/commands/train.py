"""`train(cfg)`: from a composed config to a trained model and its metrics."""

import logging
import time
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import nn

from lfvit.checks import check_range, check_whole
from lfvit.commands.setup import build_model, make_record, record_of, trainer_settings
from lfvit.data import ImageDataModule
from lfvit.errors import CheckpointError, ConfigError
from lfvit.measure.costs import count_macs
from lfvit.models.checkpoints import load_checkpoint, read_file
from lfvit.models.reduction.patch import unreduced
from lfvit.runs import (
    commit,
    is_main_process,
    machine,
    plain,
    start_run,
    training_record,
    write_json,
)
from lfvit.sweeps import check_one_process
from lfvit.tracking.loggers import TRACKING, summarise, tracked, tracked_as
from lfvit.tracking.summaries import training_summary
from lfvit.training.module import RECORD, Classifier, refuse_unlearnable
from lfvit.training.schedule import Schedule
from lfvit.training.token_labels import has_aux_head

log = logging.getLogger(__name__)

NOT_RECORDED = {"reducer": {"name": "none"}}
"""What checkpoints mean that were written before there was such a setting."""


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train as configured; also callable from tests and from other code.

    Settings are checked before any data is read. Writes into ``cfg.run_dir``: the composed config,
    commit, diff, environment, run.json, checkpoints and metrics.json.

    Returns:
        The contents of metrics.json.

    Raises:
        LFViTError: anything the user can mend.
    """
    schedule = check(cfg)
    resumed = _check_resume(cfg) if cfg.ckpt_path is not None else None
    with training_record(cfg), tracked(cfg, "train", resumed) as loggers:
        run_dir = start_run(cfg)
        L.seed_everything(cfg.seed, verbose=False)
        trainer = build_trainer(cfg, schedule, loggers)
        data: ImageDataModule = hydra.utils.instantiate(cfg.data)
        if resumed is not None and data.classes != resumed["classes"]:
            raise CheckpointError(
                f"{cfg.ckpt_path}: was trained on other classes ({resumed['classes'][:3]}..., now "
                f"{data.classes[:3]}...); resume with the same data"
            )
        module = build_module(cfg, schedule, data.classes)
        module.record[TRACKING] = tracked_as(loggers, cfg)
        started = time.monotonic()
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        metrics = _metrics(trainer, module, data, time.monotonic() - started)
        if is_main_process():
            write_json(run_dir / "metrics.json", metrics)
        summarise(loggers, training_summary(metrics, module.model), trainer.global_step)
    return metrics


def build_trainer(cfg: DictConfig, schedule: Schedule, loggers: list[Logger]) -> L.Trainer:
    """Lightning's Trainer with the configured callbacks.

    Raises:
        ConfigError: a setting Lightning refuses.
    """
    callbacks = [
        hydra.utils.instantiate(c) for c in cfg.callbacks.values() if c and "_target_" in c
    ]
    if not loggers:
        callbacks = [c for c in callbacks if not isinstance(c, LearningRateMonitor)]
    if schedule.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=schedule.ema_decay))
    try:
        return L.Trainer(
            **trainer_settings(cfg),
            enable_progress_bar="progress" in cfg.callbacks,
            enable_checkpointing="checkpoint" in cfg.callbacks,
            max_epochs=schedule.epochs,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=cfg.run_dir,
            use_distributed_sampler=False,  # the DataModule's samplers know their rank
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {error}") from error


def build_module(cfg: DictConfig, schedule: Schedule, classes: list[str]) -> Classifier:
    """The model of the config for these classes, with its initial weights, ready to train."""
    model = build_model(
        cfg, len(classes), drop_path_rate=schedule.drop_path_rate, pretrained=cfg.pretrained
    )
    if cfg.init_from is not None:
        load_checkpoint(model, cfg.init_from, new_head=True)
    return Classifier(
        model,
        schedule,
        teacher=unreduced(model) if schedule.distill_weight else None,
        num_classes=len(classes),
        threshold=cfg.threshold,
        seed=cfg.seed,
        record=make_record(cfg, classes),
        compile_passes=cfg.compile,
    )


def check(cfg: DictConfig, weights_exist: bool = True) -> Schedule:
    """Refuse settings that cannot work, before any data is read.

    Args:
        cfg: a composed training config.
        weights_exist: whether the file of ``init_from`` should be there already.

    Raises:
        ConfigError: naming the setting, its value and what would be valid.
    """
    schedule = Schedule.of(plain(cfg.schedule))
    model = build_model(cfg, num_classes=2)  # every check of the model
    _check_token_labels(cfg, model)
    refuse_unlearnable(model, cfg.compile)
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
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        check_one_process(cfg)
    return schedule


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


def _check_resume(cfg: DictConfig) -> dict[str, Any]:
    """A run can only be continued as it was started; returns the checkpoint's record."""
    content = read_file(cfg.ckpt_path)
    if RECORD not in content or "loops" not in content:
        raise CheckpointError(
            f"{cfg.ckpt_path}: not a checkpoint of a training run; to start from its weights pass "
            "init_from= instead of ckpt_path="
        )
    record = record_of(content, cfg.ckpt_path)
    for key in ("method", "backbone", "reducer", "image_size", "schedule", "seed"):
        then: Any = record.get(key, NOT_RECORDED.get(key))
        now = plain(cfg[key])
        try:
            same = Schedule.of(then) == Schedule.of(now) if key == "schedule" else then == now
        except (ConfigError, TypeError) as error:
            raise CheckpointError(
                f"{cfg.ckpt_path}: the {key} in its record cannot be read ({error}); use an "
                "earlier checkpoint"
            ) from error
        if not same:
            raise CheckpointError(
                f"{cfg.ckpt_path}: was trained with {key}={then}, not {now}; repeat the run's own "
                "settings to resume it, or pass init_from= to start a new run from its weights"
            )
    return record


def _metrics(
    trainer: L.Trainer, module: Classifier, data: ImageDataModule, seconds: float
) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        name: value.item() for name, value in sorted(trainer.callback_metrics.items())
    }
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
        "unreadable_images": len(data.unreadable),
        "train_seconds": round(seconds, 1),
        "commit": commit(),
        "machine": machine(),
    }

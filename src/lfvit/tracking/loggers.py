"""Loggers of a run, open from before its first second of work until its exit code is known."""

import csv
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig
from torch import nn

from lfvit.errors import ConfigError
from lfvit.measure.costs import pass_macs
from lfvit.runs.record import MODEL, CheckpointRecord
from lfvit.runs.sweeps import in_sweep
from lfvit.utils.distributed import is_main_process
from lfvit.utils.validation import instantiate, plain

if TYPE_CHECKING:
    from lfvit.measure.schemas import Evaluation

log = logging.getLogger(__name__)


class CSVLogger(lightning_loggers.CSVLogger):
    """Lightning's CSVLogger, except that a resumed run keeps the rows before its checkpoint.

    Args:
        save_dir: folder of metrics.csv.
        purge_step: optimizer steps at the checkpoint: earlier rows are kept, later ones, which are
            computed again, are dropped. None starts a new file.
        **settings: of Lightning's CSVLogger.
    """

    def __init__(self, save_dir: str, *, purge_step: int | None = None, **settings: Any) -> None:
        super().__init__(save_dir, **settings)
        path = Path(self.log_dir) / "metrics.csv"
        if purge_step is not None and path.exists() and is_main_process():
            with path.open(newline="") as file:  # None in a row that a power cut left incomplete
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            kept: Any = [row for row in rows if int(row["step"]) < purge_step]
            self.experiment.metrics = kept  # opening it deleted the file
            self.save()


class WandbLogger(lightning_loggers.WandbLogger):
    """Lightning's WandbLogger, except that W&B cannot stop a run that has started.

    The first exception (W&B's process died, its disk is full) is reported; after it W&B gets
    nothing more, and the run goes on.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even where it is None
        self.failed = self._sets_data_dir = False
        for name in ("log_metrics", "log_hyperparams", "log_table", "log_image"):
            setattr(self, name, partial(self.attempt, getattr(self, name)))

    def attempt(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call a function that uses W&B, unless W&B has failed; the first failure is reported."""
        if self.failed:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # W&B raises many kinds
            self.failed = True
            log.warning(
                "W&B failed and gets nothing more (%s: %s); the run goes on, and what W&B has on "
                "disk can be sent with `wandb sync`",
                type(error).__name__,
                error,
            )

    def open(self) -> None:
        """Start the W&B run. Files of tables wait for their upload in the run's folder.

        Raises:
            ConfigError: it could not be started.
        """
        self._sets_data_dir = "WANDB_DATA_DIR" not in os.environ
        if self._sets_data_dir:
            staged = Path(self.save_dir or ".") / "wandb" / "staged"
            os.environ["WANDB_DATA_DIR"] = str(staged.absolute())
        try:
            _ = self.experiment
        except Exception as error:
            raise ConfigError(
                f"W&B could not be started ({error}); run `wandb login`, or pass "
                "logger.wandb.offline=true or logger=csv"
            ) from error

    def finish(self, exit_code: int) -> None:
        """End the W&B run, also one that failed."""
        import wandb  # takes a second that runs without W&B do not spend

        run, self._experiment = self._experiment, None
        if self._sets_data_dir:
            del os.environ["WANDB_DATA_DIR"]
        if run is None:
            return
        self.attempt(run.finish, exit_code=exit_code)
        if self.failed:  # the next run of a sweep starts a new process of W&B's
            with suppress(Exception):
                run.finish(exit_code=exit_code)
            with suppress(Exception):
                wandb.teardown()
            wandb.run = None


@contextmanager
def tracked(
    cfg: DictConfig,
    job_type: str,
    record: CheckpointRecord | None = None,
    purge_step: int | None = None,
) -> Iterator[list[Logger]]:
    """The loggers of ``cfg.logger``, open; W&B is closed at the end with the exit code.

    They are opened at once, so that a missing account is reported before hours are spent.

    Args:
        cfg: a composed config.
        job_type: "train", "evaluate" or "benchmark". A training with a `record` continues that W&B
            run; other jobs join its group.
        record: of the checkpoint that the job starts from.
        purge_step: optimizer steps taken before that checkpoint, where a training continues it: CSV
            files and TensorBoard drop what was logged after it, W&B shows both.

    Raises:
        ConfigError: a logger cannot be started.
    """
    loggers: list[Logger] = []
    known = record.tracking if record else {}
    params = plain(cfg)
    if record and job_type != "train":  # where the command line leaves them open
        params |= {key: getattr(record, key) for key in MODEL}
    exit_code = 1
    try:
        for name, settings in (plain(cfg.get("logger")) or {}).items():
            if settings is None:
                continue
            target = get_class(settings["_target_"])
            if issubclass(target, WandbLogger):
                settings = _wandb_settings(settings, cfg, job_type, known)
            if purge_step is not None and "purge_step" in inspect.signature(target).parameters:
                settings = {**settings, "purge_step": purge_step}
            logger: Logger = instantiate(f"logger.{name}", settings)
            loggers.append(logger)
            if isinstance(logger, WandbLogger):
                logger.open()
            logger.log_hyperparams(params)
        yield loggers
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.finish(exit_code)


def _wandb_settings(
    settings: dict[str, Any], cfg: DictConfig, job_type: str, known: Mapping[str, Any]
) -> dict[str, Any]:
    """``logger.wandb`` with everything that it leaves open filled in."""
    if known.get("project") != settings["project"]:
        known = {}  # runs of two projects have nothing to join
    defaults = {
        "id": known.get("id") if job_type == "train" else None,
        "entity": known.get("entity"),
        "group": known.get("group") or sweep_group(),
        "name": f"{cfg.name}/{HydraConfig.get().job.num}" if in_sweep() else cfg.name,
        "job_type": job_type,
    }
    return defaults | {key: value for key, value in settings.items() if value is not None}


def sweep_group() -> str | None:
    """The group of a sweep's runs: the id of W&B's sweep, or the name of Hydra's directory."""
    folder = Path(HydraConfig.get().sweep.dir).name if in_sweep() else None
    return os.environ.get("WANDB_SWEEP_ID") or folder


def tracking_record(loggers: Sequence[Logger]) -> dict[str, str | None]:
    """Id, entity, project and group of the W&B run, which a checkpoint keeps for later jobs."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_main_process():
            keys = ("id", "entity", "project", "group")
            return {key: getattr(logger.experiment, key) or None for key in keys}
    return {}


def summarise(loggers: Sequence[Logger], summary: Mapping[str, Any], step: int = 0) -> None:
    """Log the results of a run.

    W&B gets them as the run's summary, which its scatter and parallel coordinates panels show;
    TensorBoard as the metrics of its HPARAMS page; CSV files as their last row.

    Args:
        loggers: any; text goes to W&B only.
        summary: by name, see `training_summary`; None is left out.
        step: optimizer steps taken.
    """
    if not is_main_process():
        return
    summary = {key: value for key, value in summary.items() if value is not None}
    numbers = {k: float(v) for k, v in summary.items() if isinstance(v, int | float)}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.attempt(lambda log=logger: log.experiment.summary.update(summary))
        elif isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(logger.hparams, numbers, step)
        else:
            logger.log_metrics(numbers, step)
        logger.finalize("success")  # once more: the Trainer did so before there was a summary


def log_table(loggers: Sequence[Logger], name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows with the same keys as a table (W&B only)."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and rows:
            logger.log_table(name, list(rows[0]), [list(row.values()) for row in rows])


def training_summary(metrics: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Results of a training for `summarise`: metrics.json, and names that evaluations share.

    top1 (percent), gmacs (1e9 multiply-accumulates per image, on average) and exit_fraction (images
    answered before the last pass) are those at the model's threshold; of a cascade, whose exits are
    not counted one by one, no gmacs.
    """
    macs, exits = pass_macs(model), metrics.get("val/exit_fraction", 0.0)
    return {
        **metrics,
        "top1": metrics.get("val/early_exit_top1", metrics.get("val/top1")),
        "exit_fraction": exits,
        "gmacs": (sum(macs) - exits * sum(macs[1:])) / 1e9 if len(macs) <= 2 else None,
    }


def evaluation_summary(evaluation: "Evaluation") -> dict[str, Any]:
    """As `training_summary`, and every operating point, under names such as "max_loss=0.5/top1"."""
    names = ("threshold", "top1", "exit_fraction", "gmacs")
    summary = {key: getattr(evaluation, key) for key in ("images", "skipped_images", "checkpoint")}
    summary |= {name: getattr(evaluation.configured, name) for name in names}
    for point in evaluation.operating_points:
        rule = point.rule.replace(" ", "_")
        summary |= {f"{rule}/{name}": getattr(point, name) for name in names}
    return summary

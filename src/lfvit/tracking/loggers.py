"""The loggers of a run, from before its first second of work to its exit code.

Every logger gets the same scalars. W&B and TensorBoard also get pictures, and W&B tables, see
`lfvit.tracking.media`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import loggers as lightning_loggers
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig

from lfvit.errors import ConfigError
from lfvit.runs.sweeps import in_sweep
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.validation import plain

log = logging.getLogger(__name__)

TRACKING = "tracking"  # the entry of a checkpoint's record that says which W&B run wrote it
FORGETTING = {
    "lfvit.tracking.csv_logger.CSVLogger": "resumed_at",
    "lightning.pytorch.loggers.TensorBoardLogger": "purge_step",
}
"""Loggers that take the step from which a resumed run logs anew, and how they call it."""
TAGGED = ("method", "backbone", "reducer", "data", "schedule")
"""The groups whose chosen options become tags, such as "method=lf_vit"."""


class WandbLogger(lightning_loggers.WandbLogger):
    """Lightning's, except that W&B cannot stop a run that has started.

    W&B keeps what it is given on disk and sends it from a process of its own, which waits for the
    network as long as it takes. What still reaches this process as an exception, because that
    process died or its disk is full, is reported once. W&B then gets nothing more, and the run
    goes on.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, even where it is None
        self.failed = False

    def attempt(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call something that talks to W&B."""
        if self.failed:
            return
        try:
            call(*arguments)
        except Exception as error:  # of whatever kind: they have changed over time
            self.failed = True
            log.warning(
                "W&B failed and gets nothing more (%s: %s); the run goes on, and what W&B has on "
                "disk can be sent with `wandb sync`",
                type(error).__name__,
                error,
            )

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.attempt(super().log_metrics, metrics, step)

    def log_media(self, build: Callable[[], Mapping[str, Any]], step: int | None = None) -> None:
        """Log what `build` returns: making a table or a picture already writes files."""
        self.attempt(lambda: self.log_metrics(build(), step))

    def log_hyperparams(self, params: Any) -> None:
        self.attempt(super().log_hyperparams, params)

    def open(self) -> None:
        """Start the W&B run.

        Raises:
            ConfigError: it could not be started.
        """
        try:
            _ = self.experiment
        except Exception as error:
            raise ConfigError(
                f"W&B could not be started ({error}); run `wandb login`, or pass "
                "logger.wandb.offline=true or logger=csv"
            ) from error

    def finish(self, exit_code: int) -> None:
        """End the W&B run, whatever state it is in."""
        import wandb  # takes a second, which runs without it do not spend

        run, self._experiment = self._experiment, None
        if run is None:
            return
        if self.failed:  # already reported, and still worth a try
            with suppress(Exception):
                run.finish(exit_code=exit_code)
        else:
            self.attempt(lambda: run.finish(exit_code=exit_code))
        if self.failed:  # the next run of a sweep gets a new process of W&B's, not the dead one
            with suppress(Exception):
                wandb.teardown()
            wandb.run = None


@contextmanager
def tracked(
    cfg: DictConfig,
    job_type: str,
    origin: Mapping[str, Any] | None = None,
    resumed_at: int | None = None,
) -> Iterator[list[Logger]]:
    """The loggers of ``cfg.logger``, open; closed at the end with the exit code.

    They are opened at once: a missing account is found before hours are spent. A W&B run gets a
    name, a group (the sweep) and tags where ``cfg.logger`` does not say them, and leaves its id in
    wandb.json of the run directory.

    Args:
        cfg: a composed config.
        job_type: "train", "evaluate" or "benchmark". A training with an `origin` continues the
            origin's W&B run; other jobs join its group.
        origin: the record of the checkpoint that the job starts from.
        resumed_at: optimizer steps taken before that checkpoint, where a training continues it:
            CSV files and TensorBoard forget what was logged after it, W&B shows both.

    Raises:
        ConfigError: W&B cannot be started.
    """
    loggers: list[Logger] = []
    exit_code = 1
    origin = origin or {}
    with _staging_in(Path(cfg.run_dir) / "wandb" / "staged"):
        try:
            for settings in plain(cfg.logger).values():
                if settings["_target_"] == f"{__name__}.{WandbLogger.__name__}":
                    settings = _wandb_settings(settings, cfg, job_type, origin)
                if resumed_at is not None and settings["_target_"] in FORGETTING:
                    settings = {**settings, FORGETTING[settings["_target_"]]: resumed_at}
                loggers.append(hydra.utils.instantiate(settings))
            for logger in loggers:
                if isinstance(logger, WandbLogger):
                    logger.open()
                logger.log_hyperparams(_hyperparameters(cfg, origin))
            _link(loggers, cfg, job_type, origin)
            yield loggers
            exit_code = 0
        finally:
            for logger in loggers:
                if isinstance(logger, WandbLogger):
                    logger.finish(exit_code)


def tracked_as(loggers: list[Logger], cfg: DictConfig) -> dict[str, Any]:
    """What a checkpoint has to remember, so that later jobs find the run that wrote it.

    Returns:
        tags, and of W&B id, entity, project and group, or None for each without W&B.
    """
    known: dict[str, Any] = dict.fromkeys(("id", "entity", "project", "group"))
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_main_process():
            run = logger.experiment
            known = {key: getattr(run, key) or None for key in known}
    return {**known, "tags": _choices(cfg)}


def summarise(loggers: list[Logger], summary: Mapping[str, Any], step: int | None = None) -> None:
    """Tell every logger what a run came to.

    W&B gets it as the run's summary, where its scatter and parallel coordinates panels look;
    TensorBoard as the metrics of its HPARAMS page; CSV files as their last row.

    Args:
        loggers: any; text goes to W&B only.
        summary: of `lfvit.tracking.summaries`.
        step: optimizer steps taken.
    """
    if not is_main_process():
        return
    summary = {key: value for key, value in summary.items() if value is not None}
    numbers = {k: float(v) for k, v in summary.items() if isinstance(v, (int, float))}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.attempt(logger.experiment.summary.update, summary)
            continue
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(logger.hparams, numbers, step)
        else:
            logger.log_metrics(numbers, step)
        logger.finalize("success")  # once more: the Trainer did so before there was a summary


def sweep_group() -> str | None:
    """What the runs of a sweep share: the id of W&B's sweep, the directory's name of Hydra's."""
    if os.environ.get("WANDB_SWEEP_ID"):
        return os.environ["WANDB_SWEEP_ID"]
    if in_sweep():
        return Path(HydraConfig.get().sweep.dir).name
    return None


def _wandb_settings(
    settings: dict[str, Any], cfg: DictConfig, job_type: str, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``logger.wandb`` says, with everything filled in that it leaves open."""
    known = origin.get(TRACKING) or {}
    if known.get("project") != settings["project"]:
        known = {"tags": known.get("tags", {})}  # runs of two projects have nothing to join
    tags = {**known.get("tags", {}), **_choices(cfg)}
    filled = {
        "id": known.get("id") if job_type == "train" else None,
        "entity": known.get("entity"),
        "group": known.get("group") or sweep_group(),
        "name": _run_name(cfg),
        "job_type": job_type,
    }
    said = {key: value for key, value in settings.items() if value is not None}
    own = said.pop("tags", [])
    return {**filled, **said, "tags": [*own, *(f"{key}={name}"[:64] for key, name in tags.items())]}


@contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """Files of W&B's tables wait for their upload beside the run, not in the user's home."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _run_name(cfg: DictConfig) -> str:
    """The name of the config and, in a sweep, the number of the job."""
    if in_sweep():
        return f"{cfg.name}/{HydraConfig.get().job.num}"
    return str(cfg.name)


def _choices(cfg: DictConfig) -> dict[str, str]:
    """The options chosen on the command line, by group; a checkpoint's own are left out."""
    chosen = {group: _name_in(cfg, group) for group in TAGGED}
    if HydraConfig.initialized():
        choices = HydraConfig.get().runtime.choices  # of reproduce.py, where that trains: has none
        chosen |= {group: choices[group] for group in TAGGED if group in choices}
    unsaid = (None, "none", "as_trained")
    return {group: name for group, name in chosen.items() if name not in unsaid}


def _name_in(cfg: DictConfig, group: str) -> str | None:
    """The name that an option itself has, for a config composed outside of Hydra's own main."""
    settings = cfg.get(group)
    return (settings.get("name") or settings.get("timm")) if settings else None


def _hyperparameters(cfg: DictConfig, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with a checkpoint's own values where the config leaves them open."""
    flat = {str(key): plain(value) for key, value in cfg.items() if key not in ("hydra", "logger")}
    for key, value in flat.items():
        own = origin.get(key)
        if own is None:
            continue
        if isinstance(value, dict) and isinstance(own, dict):
            said = {name: v for name, v in value.items() if v is not None}
            flat[key] = said if "_target_" in said else {**own, **said}
        elif value is None:
            flat[key] = own
    return {**{k: origin[k] for k in ("schedule", "seed") if k in origin}, **flat}


def _link(loggers: list[Logger], cfg: DictConfig, job_type: str, origin: Mapping[str, Any]) -> None:
    """Give a training and what is measured of it the same config.train_run, and keep the id."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_main_process():
            found = tracked_as([logger], cfg)
            training = found if job_type == "train" else origin.get(TRACKING) or {}
            logger.log_hyperparams({"train_run": training.get("id")})
            Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(cfg.run_dir) / "wandb.json", {**found, "job_type": job_type})

"""Which training is this? The settings that decide its weights, and a short name of them."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from lfvit.models.weight_files import weights_digest
from lfvit.models.zoo import locate
from lfvit.utils.distributed import count_processes
from lfvit.utils.validation import plain

NOT_WEIGHTS = (
    "name",
    "run_dir",
    "logger",
    "threshold",
    "repeat",
    "evaluate",
    "ckpt_path",
    "data.num_workers",
    "callbacks.last",
    "callbacks.nonfinite",  # of a training that one setting stopped, the other continues
    "callbacks.progress",
    "callbacks.lr_monitor",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
"""Settings of a training that change nothing about the trained weights."""


def identity(cfg: DictConfig) -> str:
    """A short name of a training: the same for all configs that would train the same weights.

    See `settings_of_weights`.
    """
    text = json.dumps(settings_of_weights(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of_weights(cfg: DictConfig) -> dict[str, Any]:
    """What decides the weights that a training ends with.

    Every setting counts except those of `NOT_WEIGHTS`; a weights file counts by its content, a
    folder of images by its path, devices and nodes by the number of processes, whose images make a
    step.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir = cfg.name = ""  # others refer to them
        cfg.pop("logger", None)
    settings: dict[str, Any] = plain(cfg)
    for key in NOT_WEIGHTS:
        *groups, leaf = key.split(".")
        group = settings
        for name in groups:
            group = group.get(name) or {}
        group.pop(leaf, None)
    if not settings.get("deterministic"):  # as before there was such a setting
        settings.pop("deterministic", None)
    with suppress(TypeError, ValueError):  # the Trainer refuses what is no number
        settings["trainer"]["devices"] = count_processes(settings["trainer"])
        settings["trainer"].pop("num_nodes", None)
    start = settings["init_from"] and locate(settings["init_from"])
    if start and start.is_file():
        settings["init_from"] = weights_digest(start)
    if settings["data"].get("root") is not None:
        settings["data"]["root"] = str(Path(settings["data"]["root"]).expanduser().absolute())
    return settings

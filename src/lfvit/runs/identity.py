"""Which training is this? The settings that decide its weights, and a short name of them."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

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
    "overwrite",
    "ckpt_path",
    "data.num_workers",
    "callbacks.checkpoint.dirpath",
    "callbacks.last",
    "callbacks.progress",
    "callbacks.lr_monitor",  # of runs of before
    "callbacks.throughput",
    "callbacks.predictions",
    "callbacks.nonfinite",  # where one setting stopped a training, the other continues it
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.profiler",
    "trainer.max_time",  # a training that it ends early is not done
    "trainer.max_steps",
)
"""Settings of a training that change nothing about the trained weights."""


def identity(cfg: DictConfig) -> str:
    """A short name of a training: the same for all configs that would train the same weights."""
    return digest(settings_of_weights(cfg))


def digest(settings: Mapping[str, Any]) -> str:
    """A short name of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of_weights(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide the weights a training ends with, by their full names.

    Every setting counts except those of `NOT_WEIGHTS`; a weights file counts by its content, a
    folder of images by its path, devices and nodes by the number of processes, whose images make a
    step.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir = cfg.name = ""  # others refer to them
        cfg.pop("logger", None)
    settings: dict[str, Any] = plain(cfg)
    with suppress(TypeError, ValueError):  # the Trainer refuses what is no number
        settings["trainer"]["devices"] = count_processes(settings["trainer"])
        settings["trainer"].pop("num_nodes", None)
    for group, key in ((settings, "init_from"), (settings["schedule"], "teacher")):
        if group.get(key) is not None and (path := locate(group[key])).is_file():
            from lfvit.models.checkpoints import weights_digest

            group[key] = weights_digest(path)
    if settings["data"].get("root") is not None:
        settings["data"]["root"] = str(Path(settings["data"]["root"]).expanduser().absolute())
    ignored = re.compile(rf"({'|'.join(map(re.escape, NOT_WEIGHTS))})(\.|$)")
    return {key: value for key, value in flatten(settings).items() if not ignored.match(key)}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names, such as "data.root"."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

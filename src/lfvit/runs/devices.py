"""On what a command computes: settings of Lightning's Trainer, and devices without one."""

from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from omegaconf import DictConfig

from lfvit.errors import ConfigError
from lfvit.utils.distributed import launched, number_of_devices
from lfvit.utils.validation import check_choice, plain


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of Lightning's Trainer; precision "auto" is bfloat16 where there is a GPU.

    Raises:
        ConfigError: other devices than torchrun or srun started processes for.
    """
    settings: dict[str, Any] = hydra.utils.instantiate(plain(cfg.trainer), _convert_="all")
    settings |= _as_launched(settings.get("devices", 1), settings.get("num_nodes"))
    # said either way: PyTorch would keep what the last job of this process asked for
    settings.setdefault("deterministic", bool(cfg.get("deterministic", False)))
    if settings.get("precision") == "auto":
        gpu = settings.get("accelerator") != "cpu" and torch.cuda.is_available()
        settings["precision"] = "bf16-mixed" if gpu else "32-true"
    return settings


def _as_launched(devices: Any, nodes: int | None) -> dict[str, int]:
    """The devices per node and the nodes of the processes that were started for them."""
    here = launched()
    if here is None:
        if nodes not in (None, 1):
            raise ConfigError(
                f"trainer.num_nodes={nodes} needs a process for every device of every node, "
                "started with torchrun or srun, see docs/distributed.md"
            )
        return {}
    automatic = devices in ("auto", "-1", -1)
    per_node = here.per_node if automatic else number_of_devices(devices)
    nodes = here.nodes if nodes is None else nodes
    if per_node * nodes != here.processes:
        raise ConfigError(
            f"{here.processes} processes were started on {here.nodes} node(s), but "
            f"trainer.devices={devices} and trainer.num_nodes={nodes} ask for {per_node * nodes}; "
            "use trainer=ddp, whose trainer.devices=auto takes as many as were started"
        )
    return {"devices": per_node, "num_nodes": nodes} if automatic else {"num_nodes": nodes}


def prediction_trainer(cfg: DictConfig, run_dir: Path, precision: str | None = None) -> L.Trainer:
    """Lightning's Trainer for going through a set of images once.

    precision: instead of the configured one.
    """
    settings = trainer_settings(cfg)
    return L.Trainer(
        **(settings if precision is None else {**settings, "precision": precision}),
        logger=False,
        enable_checkpointing=False,
        default_root_dir=run_dir,
        use_distributed_sampler=False,
    )


def check_one_device(cfg: DictConfig, reason: str) -> None:
    """Refuse several processes where nothing gathers what each of them finds."""
    here = launched()
    if cfg.trainer.devices not in (1, "1") or (here is not None and here.processes > 1):
        found = (
            f"trainer.devices={cfg.trainer.devices}"
            if here is None
            else f"{here.processes} processes"
        )
        raise ConfigError(f"{found}: {reason}; use one process and trainer.devices=1")


def find_device(accelerator: str) -> torch.device:
    """auto, cpu or gpu; auto is the GPU where there is one."""
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("accelerator", accelerator, ["auto", "cpu", "gpu"])
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator=gpu, but no GPU is visible; use accelerator=cpu")
    return torch.device("cuda" if accelerator == "gpu" else "cpu")

"""What models run on: devices, precisions and Lightning's Trainer."""

import inspect
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lfvit.errors import ConfigError
from lfvit.utils.distributed import launched, number_of_devices
from lfvit.utils.validation import check_choice, plain, suggest

if TYPE_CHECKING:  # Lightning takes a second to import, and prediction needs none of it
    import lightning as L

log = logging.getLogger(__name__)


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of Lightning's Trainer; precision "auto" is bfloat16 where `has_bfloat16`.

    Raises:
        ConfigError: no argument of the Trainer; other devices than torchrun or srun started
            processes for.
    """
    import lightning as L

    settings: dict[str, Any] = instantiate(plain(cfg.trainer), _convert_="all")
    valid = inspect.signature(L.Trainer).parameters
    for name in settings.keys() - valid:
        raise ConfigError(
            f"trainer.{name} is no argument of Lightning's Trainer; {suggest(name, valid)}"
        )
    # set either way: PyTorch would keep what the last job of this process asked for
    settings.setdefault("deterministic", bool(cfg.get("deterministic", False)))
    if settings.get("precision") == "auto":
        gpu = settings.get("accelerator") != "cpu" and torch.cuda.is_available()
        half = gpu or (has_bfloat16("cpu") and not settings["deterministic"])
        settings["precision"] = "bf16-mixed" if half else "32-true"
    here, devices, nodes = launched(), settings.get("devices", 1), settings.get("num_nodes")
    if here is None:
        if nodes not in (None, 1):
            raise ConfigError(
                f"trainer.num_nodes={nodes} needs a process for every device of every node, "
                "started with torchrun or srun, see docs/distributed.md"
            )
        return settings
    if devices in ("auto", "-1", -1):
        settings["devices"] = here.processes // here.nodes
    settings["num_nodes"] = here.nodes if nodes is None else nodes
    if number_of_devices(settings["devices"]) * settings["num_nodes"] != here.processes:
        raise ConfigError(
            f"{here.processes} processes were started on {here.nodes} node(s), but "
            f"trainer.devices={devices} and trainer.num_nodes={nodes} ask for others; use "
            "trainer=ddp, whose trainer.devices=auto takes as many as were started"
        )
    return settings


def prediction_trainer(cfg: DictConfig, run_dir: Path) -> "L.Trainer":
    """Lightning's Trainer for going through a set of images once."""
    import lightning as L

    settings = trainer_settings(cfg)
    log.info("precision %s", settings.get("precision", "32-true"))
    return L.Trainer(
        **settings,
        logger=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_checkpointing=False,
        default_root_dir=run_dir,
        use_distributed_sampler=False,
    )


def has_bfloat16(device: str) -> bool:
    """Whether products are faster in bfloat16: on GPUs, and on CPUs with AVX512-BF16 or AMX."""
    has = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return device == "cuda" or any(supported() for supported in has)


def inference_context(precision: str, device: torch.device) -> torch.autocast:
    """What a forward runs in for precision fp32 or bf16; auto is bf16 where `has_bfloat16`."""
    check_choice("precision", precision, ["auto", "fp32", "bf16"])
    half = precision == "bf16" or (precision == "auto" and has_bfloat16(device.type))
    log.info("on %s, precision %s", device.type, "bf16" if half else "fp32")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def find_device(accelerator: str) -> torch.device:
    """auto, cpu or gpu; auto is the GPU where there is one."""
    check_choice("accelerator", accelerator, ["auto", "cpu", "gpu"])
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator=gpu, but no GPU is visible; use accelerator=cpu")
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")

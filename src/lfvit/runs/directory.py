"""What every run leaves beside its results, so that each number can be traced back."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from yaml import YAMLError

from lfvit.errors import ConfigError, StorageError
from lfvit.models.weight_files import weights_digest
from lfvit.results.zoo import locate
from lfvit.runs.launch import processes_of
from lfvit.utils.atomic_io import remove_partial, write_whole
from lfvit.utils.signals import Stopped

PROJECT_ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    "lfvit",
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "fvcore",
    "wandb",
    "numpy",
    "pillow",
)

NO_PART = (
    "name",
    "run_dir",
    "logger",
    "threshold",
    "repeat",
    "evaluate",
    "ckpt_path",
    "on_nonfinite",  # of a training that one setting stopped, the other continues
    "max_skipped",
    "data.num_workers",
    "callbacks.last",
    "callbacks.progress",
    "callbacks.lr_monitor",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
"""Settings of a training that change nothing about the trained weights."""


def start_run(cfg: DictConfig) -> Path:
    """Create the run directory, with config, commit, uncommitted diff and environment in it."""
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        return run_dir
    told = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    if start := _start_of_continued(cfg):
        told.init_from = start
    write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(told))
    write_json(run_dir / "environment.json", environment())
    diff = _uncommitted()
    if diff:
        (run_dir / "uncommitted.diff").write_bytes(diff)
    return run_dir


def _start_of_continued(cfg: DictConfig) -> str | None:
    """The weights that a training once started from which goes on in its own directory."""
    run_dir = Path(cfg.run_dir).absolute()
    if "init_from" not in cfg or cfg.ckpt_path is None:
        return None
    if Path(cfg.ckpt_path).absolute().parent.parent != run_dir:
        return None
    with suppress(OSError, ValueError, YAMLError):
        before = yaml.safe_load((run_dir / "config.yaml").read_text())
        return before.get("init_from") if isinstance(before, dict) else None
    return None


def identity(cfg: DictConfig) -> str:
    """A short name of a training: the same for all configs that would train the same weights.

    See `settings_of_weights`.
    """
    text = json.dumps(settings_of_weights(cfg), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of_weights(cfg: DictConfig) -> dict[str, Any]:
    """What decides the weights that a training ends with.

    Every setting counts except those of `NO_PART`; a weights file counts by its content, a folder
    of images by its place, devices and nodes by the number of processes, whose images make a step.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir = cfg.name = ""  # others refer to them
        cfg.pop("logger", None)
    settings: dict[str, Any] = plain(cfg)
    for key in NO_PART:
        *groups, leaf = key.split(".")
        group = settings
        for name in groups:
            group = group.get(name) or {}
        group.pop(leaf, None)
    if not settings.get("deterministic"):  # as before there was such a setting
        settings.pop("deterministic", None)
    with suppress(TypeError, ValueError):  # the Trainer refuses what is no number
        settings["trainer"]["devices"] = processes_of(settings["trainer"])
        settings["trainer"].pop("num_nodes", None)
    start = settings["init_from"] and locate(settings["init_from"])
    if start and start.is_file():
        settings["init_from"] = weights_digest(start)
    if settings["data"].get("root") is not None:
        settings["data"]["root"] = str(Path(settings["data"]["root"]).expanduser().absolute())
    return settings


@contextmanager
def training_record(cfg: DictConfig) -> Iterator[None]:
    """run.json of a training, and its directory for itself: what sweeps find it by.

    run.json says status ("running", "done", "failed", or "stopped" from outside), identity, when
    it started and ended, in how many processes, and the error. A killed process leaves "running";
    its lock on run.lock ended with it. What it left half-written is removed.

    A training that continues here keeps the identity it began with. One that continues a
    checkpoint from somewhere else has none: its beginning may have had other settings.

    Raises:
        ConfigError: another process is training in ``cfg.run_dir``.
    """
    if not is_main_process():
        yield
        return
    path = Path(cfg.run_dir) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquired(path.parent)
    for folder in (path.parent, path.parent / "checkpoints"):
        remove_partial(folder)
    begun = read_json(path).get("identity")
    key = identity(cfg) if cfg.ckpt_path is None else begun
    record: dict[str, Any] = {"identity": key, "status": "running", "started": now(), "ended": None}
    with suppress(TypeError, ValueError):
        record["processes"] = processes_of(plain(cfg.trainer))
    write_json(path, record)
    try:
        yield
        record["status"] = "done"
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    except BaseException as error:  # from outside
        reason = str(error.signal.name) if isinstance(error, Stopped) else "interrupted"
        record |= {"status": "stopped", "error": reason}
        raise
    finally:
        try:
            write_json(path, {**record, "ended": now()})
        except StorageError:  # the error of a full disk is known already
            if record["status"] == "done":
                raise
        lock.release()


def wait_until_left(folder: Path, seconds: float) -> None:
    """Wait for a process that trains there: a killed one leaves with its last loader process.

    Raises:
        ConfigError: it goes on.
    """
    if is_main_process() and (folder / "run.json").exists():
        _acquired(folder, seconds).release()


def _acquired(folder: Path, seconds: float = 0) -> FileLock:
    """The lock on a directory, held."""
    lock = directory_lock(folder)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise ConfigError(
            f"run_dir={folder}: another process is training there; wait for it, or pass another "
            "directory"
        ) from error
    return lock


def directory_lock(folder: Path) -> FileLock:
    """The lock that a training holds on its directory as long as its process lives."""
    return FileLock(folder / "run.lock")


def is_main_process() -> bool:
    """False in the other processes of a distributed run, which write no files."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def environment() -> dict[str, Any]:
    """Command, commit, versions and machine."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The checked-out commit, with "+" where files differ from it; None outside a checkout."""
    head = _git("rev-parse", "--short=12", "HEAD").decode().strip()
    return f"{head}{'+' if _git('status', '--porcelain') else ''}" if head else None


def machine() -> str:
    """Processor, cores and GPU in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{_processor()}, {cores} cores, {platform.system()}"
    if torch.cuda.is_available():
        words = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {words}"
    return words


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The contents of a JSON file; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def is_name(text: str) -> bool:
    """Whether a file or folder of this name can only be inside of the folder it is looked for."""
    return Path(text).name == text and text not in ("", ".", "..")


def inside(folder: Path, path: str) -> Path | None:
    """A path from a record, seen from its folder; None where it leads out of the folder's root.

    The root is three levels up: a job may name what it found in a run beside its sweep.
    """
    found, above = (folder / path).resolve(), folder.resolve().parents
    return found if found.is_relative_to(above[min(2, len(above) - 1)]) else None


def now() -> str:
    """The time, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def plain(cfg: Any) -> Any:
    """A config as plain dicts, lists and values, interpolations resolved."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _uncommitted() -> bytes:
    """What differs from the commit, new files included, as a patch that git apply takes."""
    patch = _git("diff", "--binary", "HEAD")
    for name in _git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
        path = PROJECT_ROOT / os.fsdecode(name)
        if name and path.is_file() and path.stat().st_size < 1_000_000:
            patch += _git("diff", "--binary", "--no-index", "/dev/null", os.fsdecode(name))
    return patch


def _git(*arguments: str) -> bytes:
    """What git prints, nothing outside a checkout; `diff --no-index` exits with 1."""
    if shutil.which("git") is None:
        return b""
    command = ["git", "-C", str(PROJECT_ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 or "--no-index" in arguments else b""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The directory of a run: its config and origin, run.json, and the lock of the process in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from lfvit.data.images import printable
from lfvit.errors import ConfigError, StorageError
from lfvit.models.zoo import locate
from lfvit.runs.identity import digest, settings_of_weights
from lfvit.runs.provenance import environment, uncommitted_changes
from lfvit.utils.atomic_io import read_json, remove_partial, write_atomic, write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.signals import Stopped

LOCK = "run.lock"
"""What a training holds in its directory as long as its process lives."""

RESULTS = (".json", ".yaml", ".csv", ".parquet", ".onnx", ".ckpt")
"""Suffixes of files that no other command writes over."""

LEAVING = 30.0
"""Seconds in which a killed process and its loader processes have left their directory."""


def start_run(cfg: DictConfig) -> Path:
    """Create the run directory, with config, commit, uncommitted changes and environment in it.

    A training that continues in its own directory keeps the config it was started with.

    Raises:
        ConfigError: see `check_free`.
    """
    run_dir = Path(cfg.run_dir)
    if printable(run_dir) != str(run_dir):
        raise ConfigError(
            f"run_dir={printable(run_dir)}: its name is not UTF-8; pass another hydra.run.dir"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        return run_dir
    check_free(cfg)
    config = run_dir / "config.yaml"
    if not (_continues(cfg) and config.exists()):
        text = OmegaConf.to_yaml(cfg, resolve=True)
        write_atomic(config, text.replace("\\uDC", "\\x"))  # bytes of names that are not UTF-8
    write_json(run_dir / "environment.json", environment())
    if changes := uncommitted_changes():
        (run_dir / "uncommitted.diff").write_bytes(changes)
    return run_dir


def check_free(cfg: DictConfig) -> None:
    """Refuse to write over what another command, or another training, left in ``cfg.run_dir``.

    Raises:
        ConfigError: it holds results, and ``overwrite`` is not set.
    """
    run_dir, training = Path(cfg.run_dir), "schedule" in cfg
    if cfg.overwrite or _continues(cfg):
        return
    files = [*run_dir.glob("*"), *run_dir.glob("checkpoints/*")]
    names = {str(path.relative_to(run_dir)) for path in files if path.suffix in RESULTS}
    status = read_json(run_dir / "run.json").get("status")
    what, advice = "results", "leave hydra.run.dir and hydra.sweep.dir out, pass other ones"
    if training and status not in (None, "done"):  # begun, and nothing to lose without weights
        names &= {"checkpoints/last.ckpt"}
        what, advice = "a training that was not finished", "pass ckpt_path=auto to continue it"
    elif "environment.json" in names:  # of a command: alone they are no results
        names -= {"config.yaml", "environment.json"} if status is None else set()
    if names := names - {"job.json"}:
        listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(
            f"{run_dir} holds {what} ({listed}); {advice}, or overwrite=true to write over it"
        )


def _continues(cfg: DictConfig) -> bool:
    """Whether a training goes on in its own directory."""
    checkpoint = cfg.get("ckpt_path") if "schedule" in cfg else None
    return (
        checkpoint is not None
        and locate(checkpoint).absolute().parent.parent == Path(cfg.run_dir).absolute()
    )


def _remove_training(cfg: DictConfig) -> None:
    """Remove a training and its evaluation, which the one that starts would be taken for.

    Raises:
        ConfigError: the new one starts from it.
    """
    names = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "run.json", "metrics.json")
    files = [Path(cfg.run_dir).absolute() / name for name in names]
    for name in ("init_from", "schedule.teacher"):
        path = OmegaConf.select(cfg, name)
        if path is not None and Path(path).absolute() in files:
            raise ConfigError(f"{name}={path} would be overwritten; pass another hydra.run.dir")
    for path in (*files, *Path(cfg.run_dir).glob("**/evaluate.json")):
        path.unlink(missing_ok=True)


@contextmanager
def training_record(cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Keep run.json of a training while it runs, and lock its directory against other processes.

    run.json holds status ("running", "done", "failed", or "stopped" by a signal or a limit),
    identity and settings of the weights, start and end, and the error or limit. A killed process
    leaves "running", and no lock. A training that continues a checkpoint from somewhere else has no
    identity: its beginning may have had other settings.

    Yields:
        The record. One that gets an "error" is of a training that did not come to its end.

    Raises:
        ConfigError: another process is training in ``cfg.run_dir``, or see `check_free`.
    """
    if not is_main_process():
        yield {}
        return
    path = Path(cfg.run_dir) / "run.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={path.parent} cannot be made: {error.strerror}") from error
    lock = FileLock(path.with_name(LOCK))
    try:
        lock.acquire(timeout=0 if cfg.ckpt_path is None else LEAVING)
    except Timeout as error:
        raise ConfigError(
            f"run_dir={path.parent}: another process is training there; wait for it, or pass "
            "another directory"
        ) from error
    try:
        check_free(cfg)
        if cfg.overwrite and not _continues(cfg):
            _remove_training(cfg)
    except ConfigError:
        lock.release()
        raise
    for folder in (path.parent, path.parent / "checkpoints"):
        remove_partial(folder)
    record: dict[str, Any] = {"status": "running", "started": now(), "ended": None}
    if cfg.ckpt_path is None:
        settings = settings_of_weights(cfg)
        record |= {"identity": digest(settings), "settings": settings}
    else:
        begun = read_json(path)
        record |= {key: begun[key] for key in ("identity", "settings") if key in begun}
    write_json(path, record)
    try:
        yield record
        record["status"] = "stopped" if "error" in record else "done"
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    except BaseException as error:  # a signal
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


def is_name(text: str) -> bool:
    """Whether a file or folder of this name can only be inside of the folder it is looked for."""
    return Path(text).name == text and text not in ("", ".", "..")


def inside(folder: Path, path: str) -> Path | None:
    """A path from a record, relative to its folder; None where it leads out of the folder's root.

    The root is three levels up: a job may name what it found in a run beside its sweep.
    """
    found, above = (folder / path).resolve(), folder.resolve().parents
    return found if found.is_relative_to(above[min(2, len(above) - 1)]) else None


def now() -> str:
    """The time, with its zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")

"""Trainings that train.py made, taken instead of made again."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lfvit.errors import ConfigError, LFViTError
from lfvit.models.checkpoints import RECORD, read_file
from lfvit.results.artifacts.runs import Run
from lfvit.results.old.evaluated import flatten
from lfvit.runs.record import make_record
from lfvit.utils.atomic_io import read_json
from lfvit.utils.validation import plain

RECIPE = ("optimizer", "lr_scheduler", "max_epochs", "ema")
RECORDED = ("method", "backbone", "reducer", "image_size", "data", "schedule", "seed", *RECIPE)
TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val")
NO_PART = ("data.num_workers", "data.on_error", "data.reduced_decode")
"""Settings of the data that change nothing about trained weights."""
TAKEN = "taken_from.txt"


def take(runs: Iterable[Run], folders: Sequence[str]) -> dict[Path, Path]:
    """Copy finished trainings to where runs look for theirs.

    A training is taken for a run that is not begun and has the same settings. A setting that one
    of the two does not know counts as off: null, false or 0.

    Args:
        runs: those to be made.
        folders: run directories of train.py, or folders above them.

    Returns:
        Folder of a run -> where its training was taken from.

    Raises:
        ConfigError: a folder is not there.
    """
    found: dict[Path, Path] = {}
    for run in runs:
        if run.train is None or run.start is not None or run.folder.exists():
            continue
        origin = next((f for f in _finished(tuple(folders)) if not differences(run, f)), None)
        if origin is None:
            continue
        shutil.copytree(origin, run.folder, ignore=shutil.ignore_patterns("evaluation", "*.lock"))
        (run.folder / TAKEN).write_text(f"{origin}\n")
        (run.folder / "settings.json").write_text(run.settings)
        found[run.folder] = origin
    return found


def differences(run: Run, folder: Path) -> list[str]:
    """Names of the settings in which a finished training differs from a run."""
    ours, theirs = _settings(run), _told(folder)
    return sorted(
        key for key in ours.keys() | theirs.keys() if _off(ours, key) != _off(theirs, key)
    )


def _off(settings: Mapping[str, Any], key: str) -> Any:
    value = settings.get(key)
    return None if value in (False, 0, "none") else value


def _settings(run: Run) -> dict[str, Any]:
    cfg: Any = run.train
    return _comparable(make_record(cfg, []), plain(cfg))


@cache
def _told(folder: Path) -> dict[str, Any]:
    """Of a finished training: its checkpoint knows the absolute place of its images."""
    record = read_file(folder / "checkpoints" / "last.ckpt")[RECORD]
    return _comparable(record, yaml.safe_load((folder / "config.yaml").read_text()))


def _comparable(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: record.get(key) for key in RECORDED} | record["recipe"]
    settings["trainer"] = {key: config["trainer"].get(key) for key in TRAINER}
    settings |= {key: config.get(key) for key in ("pretrained", "init_from")}
    flat = {key: value for key, value in flatten(settings).items() if key not in NO_PART}
    if flat.get("data.root") is not None:
        flat["data.root"] = str(Path(flat["data.root"]).resolve())
    return flat


@cache
def _finished(folders: tuple[str, ...]) -> list[Path]:
    """Directories of finished trainings with their weights, in order."""
    found = []
    for name in folders:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"reuse={name}: no such folder; name run directories, or one above")
        for path in sorted(folder.rglob("metrics.json")):
            place = path.parent
            done = read_json(place / "run.json").get("status", "done") == "done"
            needed = (place / "config.yaml", place / "checkpoints" / "last.ckpt")
            if done and all(file.is_file() for file in needed) and _readable(place):
                found.append(place)
    return found


def _readable(folder: Path) -> bool:
    try:
        return bool(_told(folder))
    except (LFViTError, KeyError, TypeError, yaml.YAMLError):
        return False

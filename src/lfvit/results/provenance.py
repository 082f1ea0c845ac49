"""How a model came about: the weights its training started from, and the command."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_STARTS = 8  # trainings one after the other that are described


def start_folder(config: Mapping[str, Any], folder: Path) -> Path:
    """The run folder whose weights a training started from, if a run wrote them.

    Args:
        config: of the training, with init_from.
        folder: of the training. A relative init_from is searched for from every folder above it.
    """
    weights = Path(str(config["init_from"]))
    candidates = [above / weights for above in (Path(), *folder.absolute().parents)]
    return next((path for path in candidates if os.path.exists(path)), weights).parent.parent


def describe_start(
    config: Mapping[str, Any],
    folder: Path,
    load: Callable[[Path], Mapping[str, Any]],
    most: int = MAX_STARTS,
) -> str:
    """The initial weights of a training in words, such as "random weights".

    Args:
        config: of the training, as in its config.yaml.
        folder: of the training.
        load: reads a config.yaml or metrics.json; empty where there is none.
        most: trainings before this one that are described.
    """
    if not config.get("init_from"):
        return "timm's pretrained weights" if config.get("pretrained") else "random weights"
    earlier = start_folder(config, folder)
    before, metrics = load(earlier / "config.yaml"), load(earlier / "metrics.json")
    if not most or not metrics or not isinstance(before.get("method"), Mapping):
        return f"the weights {Path(str(config['init_from'])).name}"
    size, epochs = before.get("image_size"), metrics["epochs"]
    return (
        f"{describe_start(before, earlier, load, most - 1)}, after {epochs} "
        f"epoch{'' if epochs == 1 else 's'} of {before['method'].get('name')} on {size} x {size} "
        f"pixels ({metrics['train_seconds'] / 60:.0f} minutes)"
    )


def without_paths(command: str) -> str:
    """The command with absolute paths replaced by DIR."""
    try:
        split = shlex.split(command)
    except ValueError:  # not a command that was recorded by this project
        return command
    words = []
    for word in split:
        key, equals, value = word.partition("=")
        if equals and os.path.isabs(value):
            words.append(f"{key}=DIR")
        else:
            words.append("DIR" if os.path.isabs(word) else word)
    return shlex.join(words)

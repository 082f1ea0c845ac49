"""From which weights a training started, as the files of the trainings before it tell."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Load = Callable[[Path], Mapping[str, Any]]
MOST = 8  # trainings one after the other that are told


def origin(config: Mapping[str, Any], folder: Path) -> Path:
    """The run directory that wrote the weights a training started from, if a run did.

    Args:
        config: of the training, with init_from.
        folder: of the training. A relative init_from was said from somewhere above it, often.
    """
    weights = Path(str(config["init_from"]))
    places = (above / weights for above in (Path(), *folder.absolute().parents))
    return next((place for place in places if os.path.exists(place)), weights).parent.parent


def start_of(config: Mapping[str, Any], folder: Path, load: Load, most: int = MOST) -> str:
    """In words: "random weights", or what was trained before, the first training first.

    Args:
        config: of the training, as in its config.yaml.
        folder: of the training.
        load: reads a config.yaml or metrics.json; nothing where there is none.
        most: trainings before this one that are told.
    """
    source = config.get("init_from")
    if not source:
        return "timm's pretrained weights" if config.get("pretrained") else "random weights"
    earlier = origin(config, folder)
    before, metrics = load(earlier / "config.yaml"), load(earlier / "metrics.json")
    method, size = before.get("method"), before.get("image_size")
    if not most or not metrics or not isinstance(method, Mapping):
        return f"the weights {Path(str(source)).name}"
    first = start_of(before, earlier, load, most - 1)
    minutes = metrics["train_seconds"] / 60
    unit = "epoch" if metrics["epochs"] == 1 else "epochs"
    return (
        f"{first}, after {metrics['epochs']} {unit} of {method['name']} on {size} x {size} pixels "
        f"({minutes:.0f} minutes)"
    )

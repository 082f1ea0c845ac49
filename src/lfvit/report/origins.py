"""From which weights a training started, as the files of the trainings before it tell."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Load = Callable[[Path], Mapping[str, Any]]
MOST = 8  # trainings one after the other that are told


def start_of(config: Mapping[str, Any], load: Load, most: int = MOST) -> str:
    """In words: "random weights", or what was trained before, the first training first.

    Args:
        config: of the training, as in its config.yaml.
        load: reads a config.yaml or metrics.json; nothing where there is none.
        most: trainings before this one that are told.
    """
    source = config.get("init_from")
    if not source:
        return "timm's pretrained weights" if config.get("pretrained") else "random weights"
    folder = Path(str(source)).parent.parent
    before, metrics = load(folder / "config.yaml"), load(folder / "metrics.json")
    method, size = before.get("method"), before.get("image_size")
    if not most or not metrics or not isinstance(method, Mapping):
        return f"the weights {Path(str(source)).name}"
    first = start_of(before, load, most - 1)
    minutes = metrics["train_seconds"] / 60
    unit = "epoch" if metrics["epochs"] == 1 else "epochs"
    return (
        f"{first}, after {metrics['epochs']} {unit} of {method['name']} on {size} x {size} pixels "
        f"({minutes:.0f} minutes)"
    )

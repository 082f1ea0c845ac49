"""The trained models of the repository: `zoo:NAME` stands wherever a file of weights is asked for.

A model is three files of the folder zoo/: NAME.safetensors, NAME.json and, made from it, NAME.md,
the card for people. The folder is part of the repository, not of an installed package.
"""

import json
from pathlib import Path
from typing import Any

from lfvit.errors import CheckpointError

FOLDER = Path(__file__).resolve().parents[4] / "zoo"
PREFIX = "zoo:"
DEFAULT = "default"
"""A name for the model that is named in the file zoo/default."""


def names() -> list[str]:
    """The models there are."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def default() -> str | None:
    """The model that is used where none is named, if there is one."""
    chosen = FOLDER / DEFAULT
    return chosen.read_text().strip() if chosen.is_file() else None


def locate(source: str | Path) -> Path:
    """The file behind `zoo:NAME`; any other path as it is.

    Raises:
        CheckpointError: no model of that name, with the names there are.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return Path(text)
    name = text.removeprefix(PREFIX)
    known = names()
    path = FOLDER / f"{default() if name == DEFAULT else name}.safetensors"
    if path.stem in known:
        return path
    if known:
        valid = ", ".join(f"{PREFIX}{each}" for each in known)
        raise CheckpointError(f"{text}: no such model in the zoo; valid: {valid}")
    where = f"{FOLDER} holds no models" if FOLDER.is_dir() else "lfvit runs without its repository"
    raise CheckpointError(
        f"{text}: the zoo is empty ({where}); pass the weights of a training of your own, "
        "ckpt_path=outputs/NAME/TIME/checkpoints/last.ckpt, which train.py writes, or put them "
        "into the zoo with python -m lfvit.results.zoo add outputs/NAME/TIME --name NAME"
    )


def card(source: str | Path) -> dict[str, Any]:
    """The machine-readable card of `zoo:NAME`, see `cards.py`; nothing for other files."""
    path = locate(source).with_suffix(".json")
    if not str(source).startswith(PREFIX) or not path.is_file():
        return {}
    return dict(json.loads(path.read_text()))

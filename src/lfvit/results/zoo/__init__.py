"""The trained models of the repository: `zoo:NAME` stands wherever a file of weights is asked for.

A model is three files of the folder zoo/: NAME.safetensors, NAME.json and, made from it, NAME.md,
the card for people. The folder is part of the repository, not of an installed package.
"""

import json
from pathlib import Path
from typing import Any

from lfvit.models.zoo import PREFIX, locate


def card(source: str | Path) -> dict[str, Any]:
    """The machine-readable card of `zoo:NAME`, see `cards.py`; nothing for other files."""
    path = locate(source).with_suffix(".json")
    if not str(source).startswith(PREFIX) or not path.is_file():
        return {}
    return dict(json.loads(path.read_text()))

"""Packages that only some commands need, installed by extras: ``pip install 'lfvit[plots]'``."""

import logging
from importlib.util import find_spec

log = logging.getLogger(__name__)

EXTRAS = {
    "matplotlib": "plots",
    "altair": "plots",
    "vl_convert": "plots",
    "jinja2": "plots",
    "wandb_workspaces": "dashboard",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "datasets": "data",
    "onnxscript": "export",
    "onnxruntime": "export",
    "onnx": "export",
    "optuna": "sweep",
    "gradio": "demo",
}
"""Modules -> the extra of pyproject.toml that installs them."""


def can_draw(what: str) -> bool:
    """Whether matplotlib is there; where it is not, say what is left out and what would mend it."""
    if find_spec("matplotlib") is None:
        log.warning("%s left out: pip install 'lfvit[plots]'", what)
        return False
    return True


def missing_extra(error: ImportError) -> str | None:
    """The message for an import that an extra would mend; None for any other."""
    name = (error.name or "").partition(".")[0]
    module = name if name in EXTRAS else next((m for m in EXTRAS if m in str(error)), None)
    if module is None:
        return None
    return f"{module} is not installed; pip install 'lfvit[{EXTRAS[module]}]'"

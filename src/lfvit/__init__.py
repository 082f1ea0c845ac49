"""lfvit: spatially adaptive vision transformers, trained, measured and compared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.measure.costs import count_macs
    from lfvit.measure.thresholds import sweep_thresholds
    from lfvit.models import create_model, reduce, restore
    from lfvit.models.checkpoints import load_checkpoint

__version__ = "0.1.0"

__all__ = [
    "count_macs",
    "create_model",
    "load_checkpoint",
    "reduce",
    "restore",
    "sweep_thresholds",
]

_HOMES = {
    "count_macs": "lfvit.measure.costs",
    "create_model": "lfvit.models",
    "load_checkpoint": "lfvit.models.checkpoints",
    "reduce": "lfvit.models",
    "restore": "lfvit.models",
    "sweep_thresholds": "lfvit.measure.thresholds",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a command with a wrong setting answers before PyTorch is loaded."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lfvit' has no attribute {name!r}")

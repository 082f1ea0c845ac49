"""lfvit: spatially adaptive vision transformers, trained, measured and compared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.measure.costs import count_macs
    from lfvit.measure.thresholds import sweep_thresholds
    from lfvit.models.checkpoints import load_checkpoint
    from lfvit.models.factory import create_model
    from lfvit.models.reduction import reduce, restore

__version__ = "0.1.0"

_MODULES = {
    "count_macs": "measure.costs",
    "create_model": "models.factory",
    "load_checkpoint": "models.checkpoints",
    "reduce": "models.reduction",
    "restore": "models.reduction",
    "sweep_thresholds": "measure.thresholds",
}

__all__ = [
    "count_macs",
    "create_model",
    "load_checkpoint",
    "reduce",
    "restore",
    "sweep_thresholds",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a wrong setting is answered before PyTorch is loaded."""
    if name in _MODULES:
        return getattr(import_module(f"lfvit.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lfvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

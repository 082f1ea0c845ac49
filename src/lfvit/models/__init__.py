"""The models, in plain PyTorch. Names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.models.checkpoints import load_checkpoint
    from lfvit.models.factory import create_model
    from lfvit.models.passes import (
        EarlyExitOutput,
        ModelOutput,
        early_exit,
        forward_passes,
        num_passes,
    )
    from lfvit.models.reduction import reduce, restore
    from lfvit.models.settings import METHODS
    from lfvit.models.two_pass import TwoPassViT

__all__ = [
    "METHODS",
    "EarlyExitOutput",
    "ModelOutput",
    "TwoPassViT",
    "create_model",
    "early_exit",
    "forward_passes",
    "load_checkpoint",
    "num_passes",
    "reduce",
    "restore",
]

_MODULES = {
    "METHODS": "settings",
    "TwoPassViT": "two_pass",
    "create_model": "factory",
    "load_checkpoint": "checkpoints",
    "reduce": "reduction",
    "restore": "reduction",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'passes')}"), name)


def __dir__() -> list[str]:
    return __all__

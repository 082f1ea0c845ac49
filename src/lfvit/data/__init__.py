"""Images in: photographs and the generated needle set, as Lightning DataModules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.data.batches import Batch
    from lfvit.data.datamodule import ImageDataModule
    from lfvit.data.generated import NeedleDataModule
    from lfvit.data.photographs import FolderDataModule, HuggingFaceDataModule, ShardDataModule

__all__ = [
    "Batch",
    "FolderDataModule",
    "HuggingFaceDataModule",
    "ImageDataModule",
    "NeedleDataModule",
    "ShardDataModule",
]

_HOMES = {
    "Batch": "batches",
    "ImageDataModule": "datamodule",
    "NeedleDataModule": "generated",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading images needs no PyTorch."""
    if name in __all__:
        return getattr(import_module(f"lfvit.data.{_HOMES.get(name, 'photographs')}"), name)
    raise AttributeError(f"module 'lfvit.data' has no attribute {name!r}")

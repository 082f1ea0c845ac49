"""Images in: folders of photographs and the generated needle set, as Lightning DataModules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.data.batches import Batch
    from lfvit.data.datamodule import FolderDataModule, ImageDataModule, NeedleDataModule

__all__ = ["Batch", "FolderDataModule", "ImageDataModule", "NeedleDataModule"]


def __getattr__(name: str) -> Any:
    """Import on first use: reading images needs no PyTorch."""
    if name in __all__:
        home = "batches" if name == "Batch" else "datamodule"
        return getattr(import_module(f"lfvit.data.{home}"), name)
    raise AttributeError(f"module 'lfvit.data' has no attribute {name!r}")

"""Images in: photographs and the generated needle set, as one Lightning DataModule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.data.batches import Batch as Batch
    from lfvit.data.batches import ImageDataset as ImageDataset
    from lfvit.data.clutter import ClutteredFolder as ClutteredFolder
    from lfvit.data.datamodule import ImageDataModule as ImageDataModule
    from lfvit.data.folders import ImageFolder as ImageFolder
    from lfvit.data.huggingface import HuggingFaceDataset as HuggingFaceDataset
    from lfvit.data.needle import NeedleSet as NeedleSet

_MODULES = {
    "Batch": "batches",
    "ClutteredFolder": "clutter",
    "HuggingFaceDataset": "huggingface",
    "ImageDataModule": "datamodule",
    "ImageDataset": "batches",
    "ImageFolder": "folders",
    "NeedleSet": "needle",
}


def __getattr__(name: str) -> Any:
    """Import on first use: settings and images need no PyTorch."""
    if name in _MODULES:
        return getattr(import_module(f"lfvit.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lfvit.data' has no attribute {name!r}")

"""Images in: folders of photographs and the generated needle set, as Lightning DataModules."""

from lfvit.data.batches import Batch
from lfvit.data.datamodule import FolderDataModule, ImageDataModule, NeedleDataModule

__all__ = ["Batch", "FolderDataModule", "ImageDataModule", "NeedleDataModule"]

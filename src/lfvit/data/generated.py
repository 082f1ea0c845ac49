"""`data=needle`: the generated needle set as a DataModule."""

from collections.abc import Callable
from typing import Any

from lfvit.data.batches import ImageSource, as_pixels
from lfvit.data.crops import RandomCrops
from lfvit.data.datamodule import ImageDataModule
from lfvit.data.needle import NeedleSet
from lfvit.errors import ConfigError


class NeedleDataModule(ImageDataModule):
    """The generated needle set, with boxes. Crops and colour changes, which could change the answer
    or the box, are not applied; erasing, mixing and smoothing are.

    Args:
        train_images, val_images: how many of each.
        num_classes: of the set.
        **settings: of `ImageDataModule`.
    """

    def __init__(
        self, *, train_images: int, val_images: int, num_classes: int, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.counts = {"train": train_images, "val": val_images}
        self.num_classes = num_classes

    def open(self) -> tuple[ImageSource, ImageSource]:
        def needles(split: str) -> NeedleSet:
            try:
                return NeedleSet(
                    self.counts[split],
                    image_size=self.image_size,
                    num_classes=self.num_classes,
                    split=split,
                    seed=self.seed,
                )
            except ValueError as error:
                raise ConfigError(f"data=needle: {error}") from error

        return needles("train"), needles("val")

    def cached_crops(self) -> RandomCrops | None:
        return None

    def train_transform(self) -> Callable[[Any], Any]:
        return as_pixels

    def eval_transform(self) -> Callable[[Any], Any]:
        return as_pixels

"""The DataModules: decoding and augmentation in workers, everything else on the device."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader

from lfvit.checks import check_choice, check_switch, check_whole
from lfvit.data.augment import Augment
from lfvit.data.batches import (
    Batch,
    ImageSource,
    RawBatch,
    Sample,
    TransformedImages,
    as_pixels,
    collate,
)
from lfvit.data.cache import CACHES, CachedBatch, Content, ImageCache, check_memory, fill
from lfvit.data.crops import RandomCrops
from lfvit.data.folders import open_folder, readable_names
from lfvit.data.images import resized_side
from lfvit.data.label_maps import LabelMapFolder
from lfvit.data.loader import BatchLoader
from lfvit.data.needle import NeedleSet
from lfvit.data.sampling import EvalSampler, TrainSampler
from lfvit.errors import ConfigError, DataError
from lfvit.models.view import half_resolution
from lfvit.seeding import seeded
from lfvit.stopping import outlast_stop

log = logging.getLogger(__name__)

ON_ERROR = ("raise", "skip")
REDUCED_MARGIN = 2
"""How many times the length it is resized to a reduced JPEG's shorter side keeps.

Against decoding in full, at 224 pixels from JPEGs 1024 to 1200 pixels high (40 each, quality 95,
4:2:0), twice the length differs by 0.8 grey levels on average and 22 at most where the photographs
have detail in every pixel, by 0.2 and 3 where they are soft; once the length by up to 2.4 and 46.
That is more than the one level of the resizing itself, so data.reduced_decode is off by default.
"""


class ImageDataModule(L.LightningDataModule, ABC):
    """Batches of normalised images with their half-resolution view.

    A subclass says where images come from (`open`) and how one becomes S x S pixels. Decoding and
    augmentation happen in worker processes; normalisation, erasing, mixup and the view on the
    device, in `on_after_batch_transfer`.

    Args:
        image_size: S in pixels.
        batch_size: images per process and step.
        num_workers: loader processes; 0 loads in the main process.
        seed: of order, augmentation and held-out split.
        augment: settings of `Augment`.
        on_error: "raise" stops at the first unreadable image, "skip" leaves it out, logs its path
            and counts it in `unreadable`.
        cache: "device" decodes the images once and keeps them on the device that trains, see
            `lfvit.data.cache`; None decodes them anew in every epoch.
    """

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("data.on_error", on_error, ON_ERROR)
        if cache is not None:
            check_choice("data.cache", cache, CACHES)
        check_whole("data.batch_size", batch_size, 1)
        check_whole("data.num_workers", num_workers, 0)
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augment = Augment.of(augment)
        self.on_error = on_error
        self.cache = cache
        self._caches: dict[tuple[str, torch.device], ImageCache] = {}
        self.unreadable: set[str] = set()
        self.train_images: ImageSource
        self.val_images: ImageSource
        self._opened = False

    @abstractmethod
    def open(self) -> tuple[ImageSource, ImageSource]:
        """Training and validation images, with the same classes; reads no pixels."""

    def train_transform(self) -> Callable[[Any], Any]:
        """An image as drawn -> (3, S, S) uint8, randomly varied."""
        return self.augment.train_transform(self.image_size)

    def eval_transform(self) -> Callable[[Any], Any]:
        """An image as drawn -> (3, S, S) uint8."""
        return self.augment.eval_transform(self.image_size)

    def cached_crops(self) -> RandomCrops | None:
        """How training varies images from the cache; None for a set that it shows as it is.

        Raises:
            ConfigError: not in a way that is possible there.
        """
        return RandomCrops.of(self.augment, self.image_size)

    def setup(self, stage: str | None = None) -> None:
        """Find the images; called by Lightning, and before it to learn the classes."""
        if not self._opened:
            self.train_images, self.val_images = self.open()
            self._opened = True
        if self.cache is not None and self.trainer is not None:
            splits = ("train", "val") if stage == "fit" else ("val",)
            missing = [split for split in splits if (split, self._device) not in self._caches]
            check_memory(sum(self._content(split).bytes for split in missing), self._device)
            for split in missing:
                self._cached(split)

    @property
    def classes(self) -> list[str]:
        """Readable class names, by class index."""
        self.setup()
        return readable_names(self.train_images.classes)

    def train_dataloader(self) -> DataLoader[Sample | str]:
        sampler = TrainSampler(
            len(self.train_images),
            seed=self.seed,
            repeats=self.augment.repeats,
            rank=self._rank,
            world_size=self._world_size,
            done=lambda: self._batches_done * self.batch_size,
        )
        if len(sampler) < self.batch_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size} is more than the {len(sampler)} training "
                f"images per process; valid: up to {len(sampler)}"
            )
        return self._loader("train", sampler, drop_last=True)

    def train_dataset(self) -> TransformedImages:
        """The training images, randomly varied."""
        return TransformedImages(self.train_images, self.train_transform())

    def val_dataloader(self) -> DataLoader[Sample | str]:
        return self._loader("val", self._eval_sampler(), drop_last=False)

    def val_dataset(self) -> TransformedImages:
        """The validation images, cut to size."""
        return TransformedImages(self.val_images, self.eval_transform())

    def some_validation_samples(self, count: int) -> list[Sample]:
        """At most so many validation images, spread over the classes, as evaluation sees them.

        Raises:
            DataError: none of them can be read.
        """
        self.setup()
        images = self.val_dataset()
        chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
        samples = [sample for i in chosen if isinstance(sample := images[i], Sample)]
        if not samples:
            raise DataError("not one validation image could be read")
        return samples

    def predict_dataloader(self) -> DataLoader[Sample | str]:
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> RawBatch:
        """Decide about unreadable images, in the main process."""
        if isinstance(batch, RawBatch):
            self._report(batch.unreadable)
        return batch

    def _report(self, unreadable: list[str]) -> None:
        if unreadable and self.on_error == "raise":
            raise DataError(f"{unreadable[0]}; replace or remove it, or set data.on_error=skip")
        for message in unreadable:
            if message not in self.unreadable:
                self.unreadable.add(message)
                log.warning("skipped (%d so far): %s", len(self.unreadable), message)

    def on_after_batch_transfer(self, batch: RawBatch | CachedBatch, dataloader_idx: int) -> Batch:
        """Everything that is done to whole batches on the device."""
        if isinstance(batch, CachedBatch):
            batch = self._cached(batch.split).fetch(batch)
        if not isinstance(batch, RawBatch):
            return batch
        images, targets, token_box = normalise(batch.images), batch.targets, None
        trainer = self.trainer
        if trainer is not None:
            images = trainer.precision_plugin.convert_input(images)
        if trainer is not None and trainer.training and len(images):
            # its own place for each batch: mixing does not depend on what was drawn before
            with seeded(self.seed, trainer.current_epoch, self._batches_done, self._rank):
                images, targets = self._mix(images, targets)
                token_box = self.augment.token_box()
        view = half_resolution(images)
        return Batch(images, view, targets, batch.boxes, token_box, batch.label_maps)

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Random erasing, then mixup or cutmix; targets (B,) become probabilities (B, C)."""
        augment, classes = self.augment, len(self.train_images.classes)
        if augment.erasing:
            images = RandomErasing(augment.erasing, mode="pixel", device=images.device)(images)
        if augment.mixup or augment.cutmix:
            mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_prob,
                switch_prob=augment.mix_switch,
                label_smoothing=augment.label_smoothing,
                num_classes=classes,
            )
            pairs = len(images) - len(images) % 2  # an odd image out stays as it is
            if pairs:
                images[:pairs], mixed = mixup(images[:pairs], targets[:pairs])
                rest = mixup_target(targets[pairs:], classes, 1.0, augment.label_smoothing)
                return images, torch.cat([mixed, rest])
        return images, mixup_target(targets, classes, 1.0, augment.label_smoothing)

    def _loader(self, split: str, sampler: Any, drop_last: bool) -> DataLoader[Any]:
        batches: Any = {"batch_size": self.batch_size, "sampler": sampler, "drop_last": drop_last}
        if self.cache is not None:
            cached = self._cached(split)
            return BatchLoader(cached, collate_fn=cached.collate, **batches)
        return BatchLoader(
            self.train_dataset() if split == "train" else self.val_dataset(),
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlast_stop,
            **batches,
        )

    def _cached(self, split: str) -> ImageCache:
        """The cache of "train" or "val" on the trainer's device; the first call decodes."""
        key = split, self._device
        if key not in self._caches:
            self._caches[key] = fill(
                self._content(split),
                self._device,
                num_workers=self.num_workers,
                report=self._report,
                quiet=self._rank > 0,
            )
        return self._caches[key]

    def _content(self, split: str) -> Content:
        """Every rank keeps all training images, and the validation images that it evaluates."""
        S = self.image_size
        if split == "val":
            mine = self._eval_sampler().indices
            return Content(split, self.val_images, mine, self.eval_transform(), S)
        every, crops = range(len(self.train_images)), self.cached_crops()
        if crops is None:
            return Content(split, self.train_images, every, self.train_transform(), S)
        return Content(split, self.train_images, every, crops.store, crops.stored_side, crops)

    def _eval_sampler(self) -> EvalSampler:
        return EvalSampler(len(self.val_images), rank=self._rank, world_size=self._world_size)

    @property
    def _batches_done(self) -> int:
        """Of this epoch; Lightning counts a batch after it was loaded and moved to the device."""
        return 0 if self.trainer is None else self.trainer.fit_loop.batch_idx + 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _device(self) -> torch.device:
        if self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device


class FolderDataModule(ImageDataModule):
    """Photographs: ImageNet's layout or any folder of classes, see `open_folder`.

    Args:
        root: the folder.
        val_fraction: of a folder without a split, the share held out.
        label_maps: a folder with a map of dense labels for every training image, see
            `LabelMapFolder`; None for no such labels.
        reduced_decode: let the JPEG decoder shrink large photographs, in evaluation and for the
            cache, while the shorter side keeps `REDUCED_MARGIN` times what it is resized to.
        **settings: of `ImageDataModule`.
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.1,
        label_maps: str | None = None,
        reduced_decode: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_switch("data.reduced_decode", reduced_decode)
        self.reduced_decode = reduced_decode
        self.root = root
        self.val_fraction = val_fraction
        self.label_maps = label_maps
        self._maps: LabelMapFolder | None = None
        for name in ("mixup", "cutmix"):
            if label_maps is not None and (value := getattr(self.augment, name)):
                raise ConfigError(
                    f"augment.{name}={value} would mix images whose label maps are not mixed; with "
                    f"data.label_maps set augment.{name}=0, and augment.mix_token=1 to mix tokens"
                )

    def open(self) -> tuple[ImageSource, ImageSource]:
        if self.root is None:
            raise ConfigError("data.root is not set; pass data.root=DIR, the folder of photographs")
        train, val = open_folder(str(self.root), self.val_fraction, self.seed)
        if self.reduced_decode:
            side = REDUCED_MARGIN * resized_side(self.image_size, self.augment.crop_pct)
            val = replace(val, shorter_side=side)
            if self.cache is not None:
                train = replace(train, shorter_side=side)
        return train, val

    def cached_crops(self) -> RandomCrops | None:
        if self.label_maps is not None:
            raise ConfigError(
                f"data.cache={self.cache} does not keep label maps; with data.label_maps set "
                "data.cache=null"
            )
        return super().cached_crops()

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "fit":
            self._open_maps()  # a missing map is found now, not hours later

    def train_dataset(self) -> TransformedImages:
        return TransformedImages(self.train_images, self.train_transform(), self._open_maps())

    def _open_maps(self) -> LabelMapFolder | None:
        if self.label_maps is not None and self._maps is None:
            images: Any = self.train_images
            root = Path(self.root).expanduser()
            base = root / "train" if (root / "train").is_dir() else root
            classes = len(images.classes)
            self._maps = LabelMapFolder.open(self.label_maps, images.paths, base, classes)
        return self._maps


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


def normalise(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float with ImageNet's mean and standard deviation."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=pixels.device).view(3, 1, 1) * 255
    return (pixels - mean).div_(std)  # in place: one large allocation instead of three

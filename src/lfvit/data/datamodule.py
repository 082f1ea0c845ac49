"""The DataModules: decoding and augmentation in workers, everything else on the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

from lfvit.data.augment import Augment
from lfvit.data.batches import (
    Batch,
    ImageSource,
    RawBatch,
    Sample,
    TransformedImages,
    Unreadable,
    collate,
    image_name,
)
from lfvit.data.cache import CACHES, CachedBatch, Content, ImageCache, check_memory, fill
from lfvit.data.classes import readable_names
from lfvit.data.counts import ReadingReport
from lfvit.data.crops import RandomCrops
from lfvit.data.loader import BatchLoader
from lfvit.data.mixing import mix
from lfvit.data.sampling import EvalSampler, TrainSampler
from lfvit.data.workers import Desk, name_images
from lfvit.errors import ConfigError, DataError
from lfvit.models.resample import downsample
from lfvit.utils.seeding import seeded
from lfvit.utils.signals import outlast_stop
from lfvit.utils.validation import check_choice, check_whole

ON_ERROR = ("raise", "skip")


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
            and counts it in `unreadable_images`.
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
        self.reading = ReadingReport(on_error)
        self._epoch: int | None = None
        self._desks = {split: Desk(num_workers) for split in ("train", "val")}
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
            self.reading.open(train=len(self.train_images), val=len(self.val_images))
            self._opened = True
        if self.cache is not None and self.trainer is not None:
            splits = ("train", "val") if stage == "fit" else ("val",)
            missing = [split for split in splits if (split, self._device) not in self._caches]
            check_memory(sum(self._content(split).bytes for split in missing), self._device)
            for split in missing:
                self._cached(split)
            if missing:  # later the main process may come here alone, to show some images
                self.reading.log("decoded", self._rank)

    @property
    def classes(self) -> list[str]:
        """Readable class names, by class index."""
        self.setup()
        return readable_names(self.train_images.classes)

    def train_dataloader(self) -> DataLoader[Sample | Unreadable]:
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
        return TransformedImages(
            self.train_images, self.train_transform(), desk=self._desks["train"]
        )

    def val_dataloader(self) -> DataLoader[Sample | Unreadable]:
        return self._loader("val", self._eval_sampler(), drop_last=False)

    def val_dataset(self) -> TransformedImages:
        """The validation images, cut to size."""
        return TransformedImages(self.val_images, self.eval_transform(), desk=self._desks["val"])

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

    def predict_dataloader(self) -> DataLoader[Sample | Unreadable]:
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> RawBatch:
        """Count, and decide about unreadable images, in the main process."""
        trainer = self.trainer
        if trainer is not None and trainer.training and trainer.current_epoch != self._epoch:
            if self._epoch is not None:
                self.reading.log(f"by the end of epoch {self._epoch}", self._rank)
            self._epoch = trainer.current_epoch
        if isinstance(batch, RawBatch):
            self.reading.take(batch)
        return batch

    @property
    def unreadable_images(self) -> int:
        """How many images were left out; of all processes, after a run of the Trainer."""
        return sum(counts.unreadable for counts in self.reading.splits.values())

    def teardown(self, stage: str) -> None:
        """Called by Lightning when a run has gone through."""
        self.reading.log("at the end", self._rank)

    def on_exception(self, exception: BaseException) -> None:
        """Called by Lightning: say which images dead loader processes were making."""
        sources = {"train": self.train_images, "val": self.val_images} if self._opened else {}
        left = {self._desks[split]: partial(image_name, sources[split]) for split in sources}
        named = name_images(exception, left)
        if named is not None:  # Lightning raises its own exception again, whatever we raise
            exception.args = (str(named),)
            exception.__cause__ = named

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
        coarse_images = downsample(images)
        return Batch(images, coarse_images, targets, batch.boxes, token_box, batch.label_maps)

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return mix(self.augment, images, targets, len(self.train_images.classes))

    def _loader(self, split: str, sampler: Any, drop_last: bool) -> DataLoader[Any]:
        batches: Any = {"batch_size": self.batch_size, "sampler": sampler, "drop_last": drop_last}
        if self.cache is not None:
            cached = self._cached(split)
            return BatchLoader(cached, collate_fn=cached.collate, **batches)
        return BatchLoader(
            self.train_dataset() if split == "train" else self.val_dataset(),
            num_workers=self.num_workers,
            collate_fn=partial(collate, split=split),
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
                report=self.reading.take,
                desk=self._desks[split],
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


def normalise(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float with ImageNet's mean and standard deviation."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=pixels.device).view(3, 1, 1) * 255
    return (pixels - mean).div_(std)  # in place: one large allocation instead of three

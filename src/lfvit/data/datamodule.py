"""The DataModule: decoding and augmentation in workers, everything else on the device."""

import inspect
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

from lfvit.data.augment import TrainTransform, draw_token_box, eval_transform, mix_batch
from lfvit.data.batches import (
    Batch,
    ImageDataset,
    LoadedImages,
    RawBatch,
    Sample,
    collate,
    image_name,
)
from lfvit.data.classes import check_same_classes, readable_names
from lfvit.data.folders import ImageFolder
from lfvit.data.label_maps import LabelMapFolder
from lfvit.data.sampling import EvalSampler, LazyLoader, TrainSampler
from lfvit.data.settings import split_settings
from lfvit.errors import ConfigError, DataError
from lfvit.models.resample import downsample
from lfvit.utils.distributed import gather_list
from lfvit.utils.seeding import seeded
from lfvit.utils.signals import outlast_stop

if TYPE_CHECKING:
    from lfvit.data.cache import ImageCache

log = logging.getLogger(__name__)

REDUCED_MARGIN = 2
"""How many times the length it is resized to a reduced JPEG's shorter side keeps.

Against decoding in full, at 224 pixels from JPEGs 1024 to 1200 pixels high (40 each, quality 95,
4:2:0), twice the length differs by 0.8 grey levels on average and 22 at most where the photographs
have detail in every pixel, by 0.2 and 3 where they are soft; once the length by up to 2.4 and 46.
"""


class ImageDataModule(L.LightningDataModule):
    """Batches of normalized images, and of the same images downsampled, from any dataset.

    Decoding and augmentation happen in worker processes; normalization, erasing, mixup and
    downsampling on the device, in `on_after_batch_transfer`.

    Args:
        dataset: a class of images, or anything that makes them, see `ImageDataset`. Called once per
            split with those of these arguments that it names: split, train (whether it is the
            training split), image_size, seed, and what `settings` hold beyond `DataSettings`.
        **settings: see `DataSettings`; others are arguments of the dataset.

    Attributes:
        train_images, val_images: the datasets, after `setup`.
        num_skipped: how many unreadable images were skipped; of all processes, after a run of the
            Trainer.
    """

    def __init__(self, dataset: Callable[..., ImageDataset], **settings: Any) -> None:
        super().__init__()
        self.dataset = dataset
        self.settings, self.options = split_settings(settings)
        self.augment = self.settings.augment
        self.image_size = self.settings.image_size
        self.batch_size = self.settings.batch_size
        self.seed = self.settings.seed
        self.train_images: ImageDataset
        self.val_images: ImageDataset
        self._classes: list[str] = []
        side = math.floor(self.image_size / self.augment.crop_pct)
        self._reduced_side = REDUCED_MARGIN * side if self.settings.reduced_decode else None
        self._caches: dict[str, ImageCache] = {}
        self._skipped: set[str] = set()  # messages, each starting with a path or name

    @property
    def classes(self) -> list[str]:
        """Readable class names, by class index."""
        self.setup()
        return self._classes

    @property
    def num_skipped(self) -> int:
        """See the class."""
        return len(self._skipped)

    def setup(self, stage: str | None = None) -> None:
        """Open the datasets; called by Lightning, and before it to learn the classes."""
        if self._classes:
            return
        self.train_images, self.val_images = self._open("train"), self._open("val")
        places = (f"data.{key}={self.options.get(key)}" for key in ("root", "path"))
        where = next((place for place in places if "None" not in place), "data.dataset")
        check_same_classes(self.train_images.classes, self.val_images.classes, where)
        self._classes = readable_names(self.train_images.classes)

    def train_dataloader(self) -> DataLoader[Any]:
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
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        size, rank, world_size = len(self.val_images), self._rank, self._world_size
        return self._loader("val", EvalSampler(size, rank=rank, world_size=world_size))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def train_dataset(self) -> LoadedImages:
        """The training images, randomly varied."""
        maps, images = None, self.train_images
        if self.settings.label_maps is not None:
            if not isinstance(images, ImageFolder):
                raise ConfigError("data.label_maps belongs to photographs in folders")
            classes = len(self._classes)
            maps = LabelMapFolder(self.settings.label_maps, images.paths, images.folder, classes)
        return LoadedImages(
            images,
            TrainTransform(self.augment, self.image_size),
            self.image_size,
            exif=self.settings.exif,
            shorter_side=None if self.settings.cache is None else self._reduced_side,
            neighbors=self.settings.on_error == "skip",
            label_maps=maps,
        )

    def val_dataset(self) -> LoadedImages:
        """The validation images, cropped to S x S."""
        return LoadedImages(
            self.val_images,
            eval_transform(self.augment, self.image_size),
            self.image_size,
            exif=self.settings.exif,
            shorter_side=self._reduced_side,
        )

    def some_validation_samples(self, count: int) -> list[Sample]:
        """At most `count` validation images, spread over the set, as evaluation sees them.

        Raises:
            DataError: none of them can be read.
        """
        self.setup()
        images = self.val_dataset()
        chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
        samples = [sample for i in chosen if not (sample := images[i]).errors]
        if not samples:
            raise DataError("none of the validation images could be read")
        return samples

    def image_names(self) -> list[str]:
        """Names of all validation images, in their order; the same on every machine."""
        self.setup()
        return [image_name(self.val_images, index) for index in range(len(self.val_images))]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Decide about unreadable images, in the main process."""
        if isinstance(batch, RawBatch):
            self._report(batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Everything that is done to whole batches on the device.

        Args:
            batch: a `RawBatch`, or a `CachedBatch`.
        """
        if not isinstance(batch, RawBatch):
            batch = self._caches[batch.split].fetch(batch)
        images, targets, token_box = normalize(batch.images), batch.targets, None
        trainer = self.trainer
        if trainer is not None:
            images = trainer.precision_plugin.convert_input(images)
        if trainer is not None and trainer.training:
            # seeded per batch: mixing does not depend on what was drawn before
            with seeded(self.seed, trainer.current_epoch, self._batches_done, self._rank):
                images, targets = mix_batch(self.augment, images, targets, len(self._classes))
                if self.augment.mix_token:
                    token_box = draw_token_box(self.augment.mix_token)
        return Batch(
            images,
            downsample(images),
            targets,
            batch.boxes,
            batch.indices,
            token_box,
            batch.label_maps,
        )

    def teardown(self, stage: str) -> None:
        """Called by Lightning at the end of a run, in all processes."""
        self._skipped = set(gather_list(sorted(self._skipped)))
        if self._skipped and self._rank == 0:
            log.warning("%d unreadable images were skipped", self.num_skipped)

    def _open(self, role: str) -> ImageDataset:
        """The dataset of the role "train" or "val"."""
        split = self.settings.train_split if role == "train" else self.settings.val_split
        available = {
            "split": split,
            "train": role == "train",
            "image_size": self.image_size,
            "seed": self.seed,
            **self.options,
        }
        name = getattr(self.dataset, "func", self.dataset).__name__
        signature = inspect.signature(self.dataset)
        given = getattr(self.dataset, "keywords", {})  # of a partial: what data.dataset sets
        arguments = {
            key: value
            for key, value in available.items()
            if key in signature.parameters and key not in given
        }
        if not {"split", "train"} & arguments.keys():
            raise ConfigError(
                f"data.dataset: {name} takes neither split nor train, so training and validation "
                "would be the same images; give it an argument split"
            )
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ConfigError(f"data.dataset: {name}: {error}") from error
        images = self.dataset(**arguments)
        if not hasattr(images, "classes"):
            raise ConfigError(f"data.dataset: {name} has no attribute classes, the class names")
        return images

    def _loader(self, split: str, sampler: TrainSampler | EvalSampler) -> DataLoader[Any]:
        images = self.train_dataset() if split == "train" else self.val_dataset()
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "sampler": sampler,
            "drop_last": split == "train",
        }
        if self.settings.cache is not None:
            cache = self._fill_cache(split, images, sampler.indices)
            return LazyLoader(cache, collate_fn=cache.collate, **options)
        return LazyLoader(
            images,
            num_workers=self.settings.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.settings.num_workers > 0,
            worker_init_fn=outlast_stop,
            **options,
        )

    def _fill_cache(self, split: str, images: LoadedImages, indices: range) -> "ImageCache":
        """The cache of "train" or "val" on the trainer's device; the first call decodes."""
        from lfvit.data.cache import ImageCache

        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if split not in self._caches or self._caches[split].images.device != device:
            self._caches[split] = ImageCache(
                split,
                images,
                indices,
                device,
                num_workers=self.settings.num_workers,
                report=self._report,
                verbose=self._rank == 0,
            )
        return self._caches[split]

    def _report(self, batch: RawBatch) -> None:
        """Count unreadable images.

        Raises:
            DataError: there is one, and on_error is "raise".
        """
        if batch.errors and self.settings.on_error == "raise":
            raise DataError(f"{batch.errors[0]}; replace or remove it, or set data.on_error=skip")
        for message in batch.errors:
            if message not in self._skipped:
                self._skipped.add(message)
                log.warning("skipped (%d so far): %s", self.num_skipped, message)

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


def normalize(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..255 -> float with ImageNet's mean and standard deviation."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=pixels.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD, device=pixels.device).view(3, 1, 1) * 255
    return (pixels - mean).div_(std)  # in place: one large allocation instead of three

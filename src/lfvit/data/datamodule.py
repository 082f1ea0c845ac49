"""The DataModule: decoding and augmentation in workers, everything else on the device."""

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Sampler

from lfvit.data.augment import TrainTransform, draw_token_mix, eval_transform, mix_batch, normalize
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
from lfvit.data.sampling import Draw, EvalSampler, LazyLoader, TrainSampler
from lfvit.data.settings import NeedleSettings, check_data
from lfvit.errors import ConfigError, DataError
from lfvit.models.tokens import downsample
from lfvit.utils.distributed import gather_list, usable_cores
from lfvit.utils.seeding import seeded
from lfvit.utils.signals import outlive_signals
from lfvit.utils.validation import suggest

if TYPE_CHECKING:
    from lfvit.data.cache import ImageCache

log = logging.getLogger(__name__)


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
        train_images, val_images: the datasets, after `setup`; after ``setup("validate")`` only the
            second.
        preprocessing: of images in evaluation; mean and std in training as well.
        trained_on: whether the model of an evaluation was trained on this data, which then says
            which images it never saw.
    """

    trained_on = False

    train_images: ImageDataset
    val_images: ImageDataset

    def __init__(self, dataset: Callable[..., ImageDataset], **settings: Any) -> None:
        super().__init__()
        self.dataset = dataset
        target = getattr(dataset, "func", dataset)
        name = f"lfvit.data.{target.__name__}" if target.__module__[:6] == "lfvit." else ""
        group = {"dataset": {"_target_": name, **getattr(dataset, "keywords", {})}, **settings}
        self.settings, self.options = check_data(group)
        self.preprocessing = self.settings.preprocessing
        self.batch_size = self.settings.batch_size
        self._classes: list[str] = []
        self._skipped: set[str] = set()  # messages, each starting with a path or name
        self._cache: ImageCache | None = None
        self._val_batches: list[RawBatch] = []

    @property
    def classes(self) -> list[str]:
        """Readable class names, by class index."""
        self.setup("validate")
        return self._classes

    @property
    def num_workers(self) -> int:
        """Loader processes; "auto" is one per core of this process's share, from 1 to 16."""
        chosen = self.settings.num_workers
        if chosen != "auto":
            return chosen
        processes = 1 if self.trainer is None else self._world_size // self.trainer.num_nodes
        return min(max(usable_cores() // processes, 1), 16)

    @property
    def num_skipped(self) -> int:
        """How many unreadable images were skipped; of all processes, after a run of the Trainer."""
        return len(self._skipped)

    def setup(self, stage: str | None = None) -> None:
        """Open the datasets; called by Lightning, and before it to learn the classes.

        stage: None or "fit" opens those of training and validation, any other of validation only.

        Raises:
            DataError: the two have other classes.
        """
        opened: dict[str, ImageDataset] = {}
        if stage in (None, "fit") and not hasattr(self, "train_images"):
            self.train_images = opened["training"] = self._open(train=True)
        if not hasattr(self, "val_images"):
            self.val_images = opened["validation"] = self._open(train=False)
            self._classes = readable_names(self.val_images.classes)
        if "training" in opened:
            where = self.options.get("root") or self.options.get("path") or "data.dataset"
            check_same_classes(self.train_images.classes, self.val_images.classes, where)
        for note in dict.fromkeys(n for d in opened.values() for n in getattr(d, "notes", [])):
            log.warning(note)
        for role, images in opened.items():
            log.info("%s: %s of %s", role, describe(images), _listed(self._classes))

    def train_dataloader(self) -> DataLoader[Any]:
        settings = self.settings
        sampler = TrainSampler(
            len(self.train_images),
            seed=settings.seed,
            repeats=settings.augment.repeats,
            rank=self._rank,
            world_size=self._world_size,
            done=lambda: self._batches_done * self.batch_size,
        )
        if not len(self.train_images):
            raise ConfigError("data.val_fraction=1 leaves no images to train on")
        if len(sampler) < self.batch_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size} is more than the {len(sampler)} training "
                f"images per process; valid: up to {len(sampler)}"
            )
        if settings.cache is None:
            return self._loader(self.train_dataset(), sampler, drop_last=True)
        from lfvit.data.cache import ImageCache

        if self._cache is None:
            self._cache = ImageCache(
                self.train_dataset(),
                self._device,
                num_workers=self.num_workers,
                report=self._report,
            )
        return LazyLoader(self._cache, batch_size=self.batch_size, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        size, rank, world_size = len(self.val_images), self._rank, self._world_size
        sampler = EvalSampler(size, rank=rank, world_size=world_size)
        loader = self._loader(self.val_dataset(), sampler)
        if self.settings.cache is None:
            return loader
        if not self._val_batches:
            for batch in loader:
                self._report(batch)
                self._val_batches.append(move_data_to_device(batch, self._device))
        return DataLoader(self._val_batches, batch_size=None)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    def train_dataset(self) -> LoadedImages:
        """The training images, randomly varied."""
        settings, images, maps = self.settings, self.train_images, None
        if settings.label_maps is not None:
            from lfvit.data.folders import ImageFolder
            from lfvit.data.label_maps import LabelMapFolder

            if not isinstance(images, ImageFolder):
                raise ConfigError("data.label_maps belongs to photographs in folders")
            maps = LabelMapFolder(settings.label_maps, images, len(self._classes))
        return LoadedImages(
            images,
            TrainTransform(settings.augment, settings.image_size),
            settings.image_size,
            exif=settings.exif,
            neighbors=settings.on_error == "skip",
            label_maps=maps,
        )

    def val_dataset(self) -> LoadedImages:
        """The validation images, cropped to S x S."""
        settings = self.settings
        return LoadedImages(
            self.val_images,
            eval_transform(self.preprocessing, settings.image_size),
            settings.image_size,
            exif=settings.exif,
        )

    def some_validation_samples(self, count: int) -> list[Sample]:
        """At most `count` validation images, spread over the set, as evaluation sees them.

        Raises:
            DataError: none of them can be read.
        """
        self.setup("validate")
        images = self.val_dataset()
        chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
        samples = [sample for i in chosen if not (sample := images[i]).errors]
        if not samples:
            raise DataError("none of the validation images could be read")
        return samples

    def image_names(self) -> list[str]:
        """Names of all validation images, in their order; the same on every machine."""
        self.setup("validate")
        return [image_name(self.val_images, index) for index in range(len(self.val_images))]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Decide about unreadable images, in the main process."""
        if isinstance(batch, RawBatch):
            self._report(batch)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Everything that is done to whole batches on the device.

        Args:
            batch: a `RawBatch`, or the arguments of `ImageCache.fetch`.
        """
        if self._cache is not None and not isinstance(batch, RawBatch):
            batch = self._cache.fetch(*batch)
        images, targets = normalize(batch.images, self.preprocessing), batch.targets
        token_mix, label_maps = None, batch.label_maps
        trainer, settings = self.trainer, self.settings
        if trainer is not None:
            images = trainer.precision_plugin.convert_input(images)
        if trainer is not None and trainer.training:
            # seeded per batch: mixing does not depend on what was drawn before
            with seeded(settings.seed, trainer.current_epoch, self._batches_done, self._rank):
                images, targets = mix_batch(settings.augment, images, targets, len(self._classes))
                if settings.augment.mix_token:
                    token_mix = draw_token_mix(settings.augment.mix_token)
            if label_maps is not None:
                label_maps = label_maps._replace(smoothing=settings.augment.label_smoothing)
        return Batch(
            images,
            downsample(images),
            targets,
            batch.boxes,
            batch.indices,
            token_mix,
            label_maps,
        )

    def teardown(self, stage: str) -> None:
        """Called by Lightning at the end of a run, in all processes."""
        self._skipped = set(gather_list(sorted(self._skipped)))
        if self._skipped and self._rank == 0:
            log.warning("%d unreadable images were skipped", self.num_skipped)

    def _open(self, train: bool) -> ImageDataset:
        """The training or validation images."""
        settings = self.settings
        available = {
            "split": settings.train_split if train else settings.val_split,
            "train": train,
            "image_size": settings.image_size,
            "seed": settings.seed,
            **self.options,
        }
        name = getattr(self.dataset, "func", self.dataset).__name__
        signature = inspect.signature(self.dataset)
        names = signature.parameters.keys() - getattr(self.dataset, "keywords", {}).keys()
        arguments = {key: available[key] for key in available if key in names}
        given = {key for key, value in self.options.items() if value is not None}
        of_default = NeedleSettings.model_fields.keys()  # which nobody has typed
        for key in sorted(given - signature.parameters.keys() - of_default):
            valid = sorted(signature.parameters.keys() - {"split", "train"})
            raise ConfigError(f"data.{key}: {name} has no such argument; {suggest(key, valid)}")
        if not {"split", "train"} & names:
            raise ConfigError(
                f"data.dataset: {name} takes neither split nor train, so training and validation "
                "would be the same images; give it an argument split"
            )
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ConfigError(f"data.dataset: {name}: {error}") from error
        return self.dataset(**arguments)

    def _loader(
        self, images: LoadedImages, sampler: Sampler[Draw], drop_last: bool = False
    ) -> DataLoader[Any]:
        return LazyLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            worker_init_fn=outlive_signals,
            persistent_workers=self.num_workers > 0,
        )

    def _report(self, batch: RawBatch) -> None:
        """Count unreadable images.

        Raises:
            DataError: there is one, and on_error is "raise".
        """
        if batch.errors and self.settings.on_error == "raise":
            raise DataError(f"{batch.errors[0]}; replace or remove it, or set data.on_error=skip")
        for message in set(batch.errors) - self._skipped:
            self._skipped.add(message)
            log.warning("skipped (%d so far): %s", self.num_skipped, message)

    @property
    def _batches_done(self) -> int:
        """Of this epoch; Lightning counts a batch after it was loaded and moved to the device."""
        return 0 if self.trainer is None else self.trainer.fit_loop.batch_idx + 1

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def describe(images: ImageDataset) -> str:
    """How many images of how many: "394 of 3,925 images"."""
    total = getattr(images, "num_total", len(images))
    return f"{len(images):,}{f' of {total:,}' if total != len(images) else ''} images"


def _listed(classes: list[str]) -> str:
    """ "3 classes (bird, cat, dog)", not all of many."""
    names = [*classes[:5], *(["..."] if len(classes) > 5 else [])]
    return f"{len(classes):,} classes ({', '.join(names)})"

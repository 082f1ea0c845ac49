"""Timing the way from image files to normalised batches on a device, beside torchvision's."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision import datasets, transforms

from lfvit.data import FolderDataModule
from lfvit.data.augment import Augment
from lfvit.data.batches import TransformedImages, collate
from lfvit.data.cache import CachedBatch, Content, fill
from lfvit.data.crops import KERNELS, RandomCrops
from lfvit.data.datamodule import normalise
from lfvit.data.folders import ImageFolder
from lfvit.data.images import WHOLE, Decoding, read_image, resized_side
from lfvit.data.photographs import REDUCED_MARGIN
from lfvit.data.sampling import EvalSampler, TrainSampler
from lfvit.measure.throughput import spread, time_interleaved

BASELINE = "torchvision"
Cases = dict[str, Callable[[], Iterator[Tensor]]]


def time_loading(
    data: FolderDataModule,
    *,
    device: torch.device,
    images: int = 256,
    warmup: int = 1,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Images per second of one core, for evaluation and for training.

    Timed is all that lies between the files and a normalised batch on the device: reading,
    decoding, cutting to size, collating, transferring, normalising. One process with one thread
    does it. Training crops and flips, and no more: colour is left out on both sides. All files are
    read once before, so that they come from the operating system's memory and not from a disc.

    - "torchvision": its ImageFolder with Resize and CenterCrop, or RandomResizedCrop and
      RandomHorizontalFlip, then ToTensor, Normalize and PyTorch's own collate.
    - "lfvit": as `data` loads them; in evaluation also with reduced_decode=true.
    - "lfvit, cache": with cache=device; decoding into the cache is not timed. Not for training with
      an interpolation that the cache does not know.

    Args:
        data: whose files, image_size, batch_size and crops are measured.
        device: where the batches go.
        images: how many of each split, spread evenly over it; all of a smaller one.
        warmup: untimed rounds over the images first.
        repeats: timed rounds, in which the pipelines take turns.

    Returns:
        A row for every pipeline, evaluation first, compared with torchvision's of the same stage.

    Raises:
        DataError: one of the images cannot be read.
    """
    data.setup()
    augment = replace(
        data.augment,
        auto_augment=None,
        color_jitter=0.0,
        interpolation=data.augment.eval_interpolation,
    )
    rows: list[dict[str, Any]] = []
    for stage, split in (("evaluation", "val"), ("training", "train")):
        source: Any = data.val_images if split == "val" else data.train_images
        chosen = torch.linspace(0, len(source) - 1, min(images, len(source))).long().tolist()
        files = replace(source.subset(chosen), decoding=WHOLE)
        base = Path(data.root).expanduser()
        base = base / split if (base / split).is_dir() else base
        pipelines = Pipelines(files, base, augment, data.image_size, data.batch_size, device)
        about = {
            "image_size": data.image_size,
            "interpolation": augment.interpolation,
            "images": len(files),
            "median_megapixels": _median_megapixels(files),
        }
        with one_thread():
            cases = pipelines.evaluation() if split == "val" else pipelines.training()
            seconds = time_interleaved(
                {name: partial(_consume, batches) for name, batches in cases.items()},
                warmup=warmup,
                repeats=repeats,
                device=device,
            )
        base_time = median(seconds[BASELINE])
        for name in cases:
            times = spread(seconds[name])
            rows.append(
                {
                    "task": "loading",
                    "model": f"{stage}: {name}",
                    "settings": json.dumps(about),
                    "batch_size": data.batch_size,
                    "images_per_second": len(files) / times["median"],
                    "images_per_second_slowest": len(files) / times["slowest"],
                    "images_per_second_fastest": len(files) / times["fastest"],
                    "compared_with": f"{stage}: {BASELINE}",
                    "measured_speedup": base_time / times["median"],
                    "repeats": repeats,
                }
            )
    return rows


@dataclass(frozen=True)
class Pipelines:
    """Ways from the same files to normalised batches on the device, (B, 3, S, S) each.

    files: of one split. base: the folder of their classes. augment: crops and flips. size: S.
    """

    files: ImageFolder
    base: Path
    augment: Augment
    size: int
    batch_size: int
    device: torch.device

    def evaluation(self) -> Cases:
        """The middle of every image."""
        side = resized_side(self.size, self.augment.crop_pct)
        mode = str_to_interp_mode(self.augment.interpolation)
        transform = self.augment.eval_transform(self.size)
        sampler = EvalSampler(len(self.files))
        reduced = replace(self.files, decoding=Decoding(REDUCED_MARGIN * side))
        return {
            BASELINE: self._standard(
                transforms.Resize(side, mode), transforms.CenterCrop(self.size)
            ),
            "lfvit": self._from_files(TransformedImages(self.files, transform), sampler),
            "lfvit, reduced decode": self._from_files(
                TransformedImages(reduced, transform), sampler
            ),
            "lfvit, cache": self._from_cache(
                Content("val", self.files, sampler.indices, transform, self.size), sampler
            ),
        }

    def training(self) -> Cases:
        """A random crop of every image."""
        mode = str_to_interp_mode(self.augment.interpolation)
        scale = self.augment.crop_scale
        transform = self.augment.train_transform(self.size)
        sampler = TrainSampler(len(self.files), seed=0)
        cases = {
            BASELINE: self._standard(
                transforms.RandomResizedCrop(self.size, scale, interpolation=mode),
                transforms.RandomHorizontalFlip(self.augment.hflip),
            ),
            "lfvit": self._from_files(TransformedImages(self.files, transform), sampler),
        }
        if self.augment.interpolation in KERNELS:
            crops = RandomCrops.of(self.augment, self.size)
            every = range(len(self.files))
            stored = Content("train", self.files, every, crops.store, crops.stored_side, crops)
            cases["lfvit, cache"] = self._from_cache(stored, sampler)
        return cases

    def _standard(self, *steps: Callable[[Any], Any]) -> Callable[[], Iterator[Tensor]]:
        pixels = transforms.ToTensor()
        normal = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        images = datasets.ImageFolder(
            str(self.base), transforms.Compose([*steps, pixels, normal]), allow_empty=True
        )
        paths = map(str, self.files.paths)
        images.samples = list(zip(paths, self.files.targets, strict=True))  # the same files
        loader = self._loader(images)

        def batches() -> Iterator[Tensor]:
            for pixels, targets in loader:
                self._moved(targets)
                yield self._moved(pixels)

        return batches

    def _from_files(
        self, images: TransformedImages, sampler: Sampler[Any]
    ) -> Callable[[], Iterator[Tensor]]:
        loader = self._loader(images, sampler=sampler, collate_fn=collate)

        def batches() -> Iterator[Tensor]:
            for raw in loader:
                self._moved(raw.targets)
                yield normalise(self._moved(raw.images))

        return batches

    def _from_cache(
        self, content: Content, sampler: Sampler[Any]
    ) -> Callable[[], Iterator[Tensor]]:
        cache = fill(content, self.device, num_workers=0, report=lambda batch: None)
        loader = DataLoader(
            cache, batch_size=self.batch_size, sampler=sampler, collate_fn=cache.collate
        )

        def batches() -> Iterator[Tensor]:
            for rows in loader:
                drawn: Any = [None if part is None else self._moved(part) for part in rows[1:]]
                yield normalise(cache.fetch(CachedBatch(rows.split, *drawn)).images)

        return batches

    def _moved(self, values: Tensor) -> Tensor:
        return values.to(self.device, non_blocking=True)

    def _loader(self, images: Any, **settings: Any) -> DataLoader[Any]:
        pin = self.device.type == "cuda"
        return DataLoader(images, batch_size=self.batch_size, pin_memory=pin, **settings)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one core for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _consume(batches: Callable[[], Iterator[Tensor]]) -> None:
    for _ in batches():
        pass


def _median_megapixels(files: ImageFolder) -> float:
    sizes = [read_image(path).size for path in files.paths]
    return median(width * height for width, height in sizes) / 1e6

"""Photographs as DataModules: folders, tar shards, Hugging Face data sets. One way to decode."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfvit.data.batches import ImageSource, TransformedImages
from lfvit.data.crops import RandomCrops
from lfvit.data.datamodule import ImageDataModule
from lfvit.data.folders import ImageFolder, open_folder
from lfvit.data.huggingface import HuggingFaceSet, open_huggingface
from lfvit.data.images import Decoding, resized_side
from lfvit.data.label_maps import LabelMapFolder
from lfvit.data.shards import ShardSet, open_shards
from lfvit.errors import ConfigError
from lfvit.utils.validation import check_switch

Photographs = ImageFolder | ShardSet | HuggingFaceSet

REDUCED_MARGIN = 2
"""How many times the length it is resized to a reduced JPEG's shorter side keeps.

Against decoding in full, at 224 pixels from JPEGs 1024 to 1200 pixels high (40 each, quality 95,
4:2:0), twice the length differs by 0.8 grey levels on average and 22 at most where the photographs
have detail in every pixel, by 0.2 and 3 where they are soft; once the length by up to 2.4 and 46.
That is more than the one level of the resizing itself, so data.reduced_decode is off by default.
"""


class PhotographDataModule(ImageDataModule):
    """Image files of any kind, from a place that a subclass knows (`find`).

    Args:
        reduced_decode: let the JPEG decoder shrink large photographs, in evaluation and for the
            cache, while the shorter side keeps `REDUCED_MARGIN` times what it is resized to.
        exif: turn photographs as their EXIF notes say. The loaders behind published figures do
            not.
        label_maps: of `FolderDataModule`; refused for others.
        **settings: of `ImageDataModule`.
    """

    def __init__(
        self,
        *,
        reduced_decode: bool = False,
        exif: bool = False,
        label_maps: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_switch("data.reduced_decode", reduced_decode)
        check_switch("data.exif", exif)
        if label_maps is not None:
            raise ConfigError(
                f"data.label_maps={label_maps} belongs to photographs in folders; use "
                "data=imagefolder with it"
            )
        self.reduced_decode = reduced_decode
        self.exif = exif

    @abstractmethod
    def find(self) -> tuple[Photographs, Photographs]:
        """Training and validation images, with the same classes."""

    def open(self) -> tuple[ImageSource, ImageSource]:
        whole = Decoding(exif=self.exif)
        side = REDUCED_MARGIN * resized_side(self.image_size, self.augment.crop_pct)
        reduced = replace(whole, shorter_side=side) if self.reduced_decode else whole
        train, val = self.find()
        for_train = whole if self.cache is None else reduced
        return replace(train, decoding=for_train), replace(val, decoding=reduced)


class FolderDataModule(PhotographDataModule):
    """Photographs: ImageNet's layout or any folder of classes, see `open_folder`.

    Args:
        root: the folder.
        val_fraction: of a folder without a split, the share held out.
        label_maps: a folder with a map of dense labels for every training image, see
            `LabelMapFolder`; None for no such labels.
        **settings: of `PhotographDataModule`.
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.1,
        label_maps: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
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

    def find(self) -> tuple[Photographs, Photographs]:
        if self.root is None:
            raise ConfigError("data.root is not set; pass data.root=DIR, the folder of photographs")
        return open_folder(str(self.root), self.val_fraction, self.seed)

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
        maps, desk = self._open_maps(), self._desks["train"]
        return TransformedImages(self.train_images, self.train_transform(), maps, desk)

    def _open_maps(self) -> LabelMapFolder | None:
        if self.label_maps is not None and self._maps is None:
            if self.exif:
                raise ConfigError(
                    "data.exif=true would turn images whose label maps are not turned; with "
                    "data.label_maps set data.exif=false"
                )
            images: Any = self.train_images
            root = Path(self.root).expanduser()
            base = root / "train" if (root / "train").is_dir() else root
            classes = len(images.classes)
            self._maps = LabelMapFolder.open(self.label_maps, images.paths, base, classes)
        return self._maps


class ShardDataModule(PhotographDataModule):
    """Photographs in tar files, see `open_shards`.

    Args:
        root: the folder of the shards.
        train, val: their names in it, with * or {000..123}; or lists of such names.
        label: where the class is: a suffix, such as cls, or json:FIELD.
        classes: a file of class names, in `root` or elsewhere, see `read_classes`; None for
            ``classes.txt`` or ``classes.json`` where there is one.
        **settings: of `PhotographDataModule`.
    """

    def __init__(
        self,
        *,
        root: str,
        train: str | list[str] = "train-*.tar",
        val: str | list[str] = "val-*.tar",
        label: str = "cls",
        classes: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root = root
        self.shards = train, val
        self.label = label
        self.class_file = classes

    def find(self) -> tuple[Photographs, Photographs]:
        if self.root is None:
            raise ConfigError("data.root is not set; pass data.root=DIR, the folder of the shards")
        return open_shards(self.root, *self.shards, self.label, self.class_file)


class HuggingFaceDataModule(PhotographDataModule):
    """A data set of the Hugging Face hub, or one on disk, see `open_huggingface`.

    Args:
        path: name on the hub, or a folder.
        name: which configuration, of a data set that has several.
        train_split, val_split: their names, or slices such as train[:90%].
        image, label: the columns.
        **settings: of `PhotographDataModule`.
    """

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
        image: str = "image",
        label: str = "label",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path = path
        self.config = name
        self.splits = train_split, val_split
        self.columns = image, label

    def find(self) -> tuple[Photographs, Photographs]:
        if self.path is None:
            raise ConfigError("data.path is not set; pass data.path=NAME or data.path=DIR")
        return open_huggingface(self.path, self.config, *self.splits, *self.columns)

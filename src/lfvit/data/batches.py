"""From drawn images to a batch: what worker processes make, and what the model receives."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lfvit.data.images import NOTES, UnreadableImageError
from lfvit.data.label_maps import FollowedTransform, LabelMap, LabelMapFolder, LabelMaps
from lfvit.data.sampling import NOTHING, Draw
from lfvit.data.workers import Desk
from lfvit.utils.seeding import seeded


class ImageSource(Protocol):
    """A set of labelled images, such as `ImageFolder` or `NeedleSet`."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def targets(self) -> list[int]: ...

    def __len__(self) -> int: ...

    def draw(self, index: int) -> tuple[Any, int, tuple[int, int, int, int] | None]:
        """A PIL image or (H, W, 3) uint8 array, its class index, and the object's box if known."""
        ...


def image_name(source: ImageSource, index: int) -> str:
    """What messages call an image; `source.name(index)` where the source names its images."""
    name = getattr(source, "name", None)
    return str(name(index)) if callable(name) else f"image {index}"


class Sample(NamedTuple):
    """pixels: (3, S, S) uint8; target: class index; box: (x0, y0, x1, y1) in pixels or None;
    label_map: of the whole image, with the place of the pixels in it, or None; notes: of the image
    with this index, see `Note`."""

    pixels: Tensor
    target: int
    box: tuple[int, int, int, int] | None
    label_map: LabelMap | None = None
    notes: tuple["Note", ...] = ()


class Note(NamedTuple):
    """That an image was read by a special rule, or not at all; counted in the log.

    image: its index. kind: in a few words, see `lfvit.data.images`.
    """

    image: int
    kind: str


class Unreadable(NamedTuple):
    """Instead of a sample: the error's message, which starts with a path, and its note."""

    message: str
    note: Note


class RawBatch(NamedTuple):
    """A batch as it leaves the workers; without images where none of them could be read.

    images: (B, 3, S, S) uint8. targets: (B,) long. boxes: (B, 4) long or None.
    unreadable: messages, each starting with a path, of the images that are missing from the batch.
    label_maps: of all images, or None.
    notes: of all images, also those that are missing.
    split: "train" or "val".
    """

    images: Tensor
    targets: Tensor
    boxes: Tensor | None
    unreadable: list[str]
    label_maps: LabelMaps | None = None
    notes: Sequence[Note] = ()
    split: str = "val"


class Batch(NamedTuple):
    """A batch as the model receives it, on its device.

    images: (B, 3, S, S) float, normalised. coarse_images: (B, 3, S/2, S/2), the same at half
    resolution.
    targets: (B,) class indices, or (B, C) probabilities in training.
    boxes: (B, 4) x0, y0, x1, y1 in pixels, or None.
    token_box: where tokens are to be mixed, see `Augment.token_box`, or None.
    label_maps: dense labels for training, or None.
    """

    images: Tensor
    coarse_images: Tensor
    targets: Tensor
    boxes: Tensor | None
    token_box: tuple[float, float, float, float] | None = None
    label_maps: LabelMaps | None = None


class TransformedImages(Dataset[Sample | Unreadable | None]):
    """Images with a transform, each made from its own seed.

    An unreadable image comes back as its error message, not as an exception: what to do about it is
    decided once, in the main process. `NOTHING` comes back as None. `desk` is where workers say
    which image they are making.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Any], Any],
        label_maps: LabelMapFolder | None = None,
        desk: Desk | None = None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.label_maps = label_maps
        self.desk = desk or Desk(0)
        self.followed = None if label_maps is None else FollowedTransform(transform)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw | int) -> Sample | Unreadable | None:
        if draw == NOTHING:
            return None
        if isinstance(draw, int):  # another sampler than ours, such as Lightning's for overfitting
            draw = Draw(draw, 0)
        try:
            with self.desk.making(draw.image):
                return self._make(draw)
        except Exception as error:
            error.add_note(f"while making {image_name(self.source, draw.image)}")
            raise

    def _make(self, draw: Draw) -> Sample | Unreadable:
        label_map = None
        try:
            image, target, box = self.source.draw(draw.image)
            scores = None if self.label_maps is None else self.label_maps.read(draw.image)
        except UnreadableImageError as error:
            return Unreadable(str(error), Note(draw.image, error.kind))
        # seeding takes time, and evaluation draws nothing
        seeds = nullcontext() if draw.seed is None else seeded(draw.seed, devices=False)
        with seeds:
            if scores is None or self.followed is None:
                pixels = self.transform(image)
            else:
                pixels, place, flipped = self.followed(image)
                label_map = LabelMap(scores, place, flipped)
        notes = notes_on(image, draw.image)
        return Sample(torch.as_tensor(pixels), target, box, label_map, notes)


def notes_on(image: Any, index: int) -> tuple[Note, ...]:
    """By which rules a drawn image was read; arrays by none."""
    kinds = image.info.get(NOTES, ()) if isinstance(image, Image.Image) else ()
    return tuple(Note(index, kind) for kind in kinds)


def collate(samples: Sequence[Sample | Unreadable | None], split: str = "val") -> RawBatch:
    """Stack the readable samples; list what was unreadable. There may be none to stack."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    bad = [sample.message for sample in unreadable]
    notes = [note for sample in good for note in sample.notes]
    notes += [sample.note for sample in unreadable]
    if not good:
        empty = torch.zeros(0, 3, 2, 2, dtype=torch.uint8)
        return RawBatch(empty, torch.zeros(0, dtype=torch.long), None, bad, None, notes, split)
    boxes = [sample.box for sample in good]
    return RawBatch(
        torch.stack([sample.pixels for sample in good]),
        torch.tensor([sample.target for sample in good]),
        None if boxes[0] is None else torch.tensor(boxes),
        bad,
        LabelMaps.of([sample.label_map for sample in good if sample.label_map is not None]),
        notes,
        split,
    )


def as_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """PIL image or (H, W, 3) uint8 array -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous()

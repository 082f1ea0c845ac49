"""How many images of a set were read by which rule, or not at all."""

import logging
from collections.abc import Iterable

import numpy as np

from lfvit.data.batches import Note, RawBatch
from lfvit.data.images import ALPHA, CMYK, DEEP, FRAMES, GREY, NOT_TURNED, PALETTE, TURNED
from lfvit.errors import DataError
from lfvit.utils.distributed import gather_list

log = logging.getLogger(__name__)

RULES = {  # and what was done
    NOT_TURNED: "with an EXIF rotation, which is ignored (data.exif=true applies it)",
    TURNED: "turned as EXIF says",
    ALPHA: "with an alpha channel, laid on white",
    FRAMES: "of several frames, the first one taken",
    DEEP: "of more than 8 bits, scaled",
    GREY: "grey",
    PALETTE: "with a palette",
    CMYK: "CMYK",
}


class ImageCounts:
    """Kinds of notes on the images of one set; an image counts once, however often it is read.

    Args:
        size: of the set.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.found: dict[str, np.ndarray] = {}  # kind: (size,) bool

    def add(self, notes: Iterable[Note]) -> None:
        for image, kind in notes:
            if kind not in self.found:
                self.found[kind] = np.zeros(self.size, dtype=bool)
            self.found[kind][image] = True

    def gather(self) -> None:
        """Take in what the other processes of a distributed run found; all of them call this."""
        mine = {kind: np.packbits(found) for kind, found in self.found.items()}
        for part in gather_list([mine]):
            for kind, bits in part.items():
                found = np.unpackbits(bits, count=self.size).astype(bool)
                self.found[kind] = self.found.get(kind, False) | found

    @property
    def counts(self) -> dict[str, int]:
        """How many images there are of each kind, unreadable ones first, then as in `RULES`."""
        kinds = [*sorted(self.found.keys() - RULES), *(k for k in RULES if k in self.found)]
        return {kind: int(self.found[kind].sum()) for kind in kinds}

    @property
    def unreadable(self) -> int:
        """How many images were unreadable for any reason."""
        return len(self.unreadable_images)

    @property
    def unreadable_images(self) -> set[int]:
        """Their indices."""
        found = [images for kind, images in self.found.items() if kind not in RULES]
        return {int(index) for images in found for index in images.nonzero()[0]}

    def __str__(self) -> str:
        """Such as: 3 unreadable: 1 truncated, 2 not an image; 12 grey."""
        counts = self.counts
        bad = ", ".join(f"{n} {kind}" for kind, n in counts.items() if kind not in RULES)
        parts = [f"{self.unreadable} unreadable: {bad}"] if bad else []
        parts += [f"{n} {RULES[kind]}" for kind, n in counts.items() if kind in RULES]
        return "; ".join(parts)


class ReadingReport:
    """What happened to the images of a run, in the main process: decided, counted and logged.

    Args:
        on_error: "raise" or "skip", see `ImageDataModule`.

    Attributes:
        unreadable: messages, each starting with a path, of the images that this process left out.
        splits: counts of "train" and "val".
    """

    def __init__(self, on_error: str) -> None:
        self.on_error = on_error
        self.unreadable: set[str] = set()
        self.splits: dict[str, ImageCounts] = {}
        self._logged: dict[str, str] = {}

    def open(self, **sizes: int) -> None:
        """Begin to count splits of these sizes."""
        self.splits = {split: ImageCounts(size) for split, size in sizes.items()}

    def take(self, batch: RawBatch) -> None:
        """Count the notes of a batch.

        Raises:
            DataError: an image was unreadable and on_error is "raise".
        """
        if batch.unreadable and self.on_error == "raise":
            raise DataError(
                f"{batch.unreadable[0]}; replace or remove it, or set data.on_error=skip"
            )
        for message in batch.unreadable:
            if message not in self.unreadable:
                self.unreadable.add(message)
                log.warning("skipped (%d so far): %s", len(self.unreadable), message)
        if batch.split in self.splits:
            self.splits[batch.split].add(batch.notes)

    def log(self, when: str, rank: int) -> None:
        """Say what changed since last time.

        Every process of a distributed run calls this at the same time; the first speaks for all.
        """
        for split, counts in self.splits.items():
            counts.gather()
            found = str(counts)
            if found != self._logged.get(split, "") and rank == 0:
                worrying = counts.unreadable or NOT_TURNED in counts.found
                level = logging.WARNING if worrying else logging.INFO
                log.log(level, "%d %s images, %s: %s", counts.size, split, when, found)
            self._logged[split] = found

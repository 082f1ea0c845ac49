"""Order of the images, and the seed of each one's augmentation.

Samplers yield `Draw`s instead of indices: the seed of an image's augmentation travels with it, so
it does not depend on the worker that happens to load it.
"""

from collections.abc import Callable, Iterator
from multiprocessing import get_all_start_methods
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lfvit.utils.seeding import derive


class Draw(NamedTuple):
    """One sample to load.

    image_index: -1 is a sample without image, which pads the last batch of a process.
    seed: of its augmentation; None where nothing is random.
    """

    image_index: int
    seed: int | None = None


class TrainSampler(Sampler[Draw]):
    """A fresh order every epoch, with repeated augmentation (Hoffer et al. 2020; DeiT).

    With ``repeats=3`` every image of the order appears three times in a row, each time augmented
    anew, and the epoch keeps its length: it sees a third of the images. Ranks take turns, so the
    repeats of an image land on different devices.

    Args:
        size: number of images.
        seed: of the run.
        repeats: how often an image appears in a row, 1 or more.
        rank, world_size: of this process.
        done: how many samples of the epoch this process has had, called when the epoch begins: more
            than 0 where a run resumes within an epoch. They are left out; the length stays.
    """

    epoch = 0

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        self.size, self.seed, self.repeats = size, seed, repeats
        self.rank, self.world_size, self.done = rank, world_size, done

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        order = order.repeat_interleave(self.repeats)[: self.size]
        seeds = torch.randint(2**31, (self.size,), generator=generator)
        first = self.rank + self.done() * self.world_size
        mine = slice(first, len(self) * self.world_size, self.world_size)
        return map(Draw, order[mine].tolist(), seeds[mine].tolist())


class EvalSampler(Sampler[Draw]):
    """Every image exactly once, in order, for any number of processes.

    Each process has a contiguous part. A process with one image less than others ends with a sample
    without image, so that all have equally many batches of the same size.

    Args:
        size: number of images; may be less than world_size.
        rank, world_size: of this process.
    """

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(size * rank // world_size, size * (rank + 1) // world_size)
        self.length = -(-size // world_size)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Draw]:
        yield from map(Draw, self.indices)
        if len(self.indices) < self.length:
            yield Draw(-1)


class LazyLoader(DataLoader[Any]):
    """A DataLoader that loads nothing before the first batch is asked for.

    Lightning begins to iterate before it restores a checkpoint, and loader processes would start on
    the order of another epoch. When it asks for the first batch, epoch and step are known.

    Loader processes start in the platform's own way. In a process that was spawned, as those that
    run trainings side by side are, they would be spawned as well, and import everything anew.
    """

    def __init__(self, dataset: Dataset[Any], *, num_workers: int = 0, **options: Any) -> None:
        if num_workers > 0:
            options["multiprocessing_context"] = get_all_start_methods()[0]
        super().__init__(dataset, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Declares to Lightning that the loader can resume; its position follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

"""Which image comes when, and with which random draws.

Samplers yield `Draw`s, not indices: the seed of a sample's augmentation travels with it, so that it
does not depend on the worker that happens to make it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from lfvit.utils.seeding import derive


class Draw(NamedTuple):
    """One sample to make: the index of the image, and the seed of its augmentation.

    seed: None where nothing is drawn.
    """

    image: int
    seed: int | None


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
        done: how many samples of the epoch this process has had, asked when it begins: more than 0
            where a run is resumed within an epoch. They are left out; the length stays.
    """

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
        self.size = size
        self.seed = seed
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self.done = done
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        return self.draws(self.done())

    def draws(self, done: int = 0) -> Iterator[Draw]:
        """What this process draws in this epoch, after so many samples."""
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        order = order.repeat_interleave(self.repeats)[: self.size]
        seeds = torch.randint(2**31, (self.size,), generator=generator)
        first = self.rank + done * self.world_size
        mine = slice(first, len(self) * self.world_size, self.world_size)
        return map(Draw, order[mine].tolist(), seeds[mine].tolist())


NOTHING = Draw(-1, None)
"""A draw without an image: it is in no batch."""


class EvalSampler(Sampler[Draw]):
    """Every image exactly once, in order, for any number of processes.

    Each process has a contiguous part: put together in the order of ranks, these are the images in
    their order. A process that has one image less draws `NOTHING` at the end, so that all of them
    have equally many batches: models whose weights are sharded compute in step.

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
        yield from (Draw(index, None) for index in self.indices)
        if len(self.indices) < self.length:
            yield NOTHING

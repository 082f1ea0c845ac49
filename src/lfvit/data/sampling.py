"""Which image comes when, and with which random draws.

Samplers yield `Draw`s, not indices: the seed of a sample's augmentation travels with it, so that it
does not depend on the worker that happens to make it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from lfvit.seeding import derive


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
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        order = order.repeat_interleave(self.repeats)[: self.size]
        seeds = torch.randint(2**31, (self.size,), generator=generator)
        first = self.rank + self.done() * self.world_size
        mine = slice(first, len(self) * self.world_size, self.world_size)
        return map(Draw, order[mine].tolist(), seeds[mine].tolist())


class EvalSampler(Sampler[Draw]):
    """Every image exactly once, in order, for any number of processes."""

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(index, None) for index in self.indices)

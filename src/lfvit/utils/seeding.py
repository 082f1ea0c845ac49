"""Randomness as a function of where training stands.

Every random draw is derived from (seed, epoch, position), never from what happened before it. A
resumed run therefore draws exactly what the uninterrupted one would have drawn, whatever the number
of worker processes, and no generator state has to be saved.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*keys: int) -> int:
    """One well-mixed 31-bit seed from several non-negative integers."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0]) >> 1


def seed_all(*keys: int, devices: bool = True) -> None:
    """Seed Python, NumPy and PyTorch from the given integers.

    devices: all of PyTorch's generators; False leaves all but the CPU's alone, which is a hundred
    times faster and the same to whoever draws on the CPU only.
    """
    seed = derive(*keys)
    random.seed(seed)
    np.random.seed(seed)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(*keys: int, devices: bool = True) -> Iterator[None]:
    """Seed as `seed_all` does for a while, then put the CPU's generators back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*keys, devices=devices)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

"""Loader processes that die: which image each of them was making."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils.data import get_worker_info

from lfvit.errors import DataError

NO_IMAGE = -1
DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
"""How PyTorch says so, either as it waits for a batch or, from a signal handler, at any time."""


class Desk:
    """What each worker is making, in memory that the main process sees.

    A killed process cannot say what killed it; its note survives it.

    Args:
        num_workers: of the loader.
    """

    def __init__(self, num_workers: int) -> None:
        # a line for every worker: its process id, the index of its image
        self.lines = torch.full((num_workers, 2), NO_IMAGE, dtype=torch.long)
        if num_workers:
            self.lines.share_memory_()

    @contextmanager
    def making(self, image: int) -> Iterator[None]:
        """Note in a worker that it makes this image; anywhere else, do nothing."""
        worker = get_worker_info()
        if worker is None or worker.id >= len(self.lines):
            yield
            return
        line = self.lines[worker.id].numpy()
        line[:] = os.getpid(), image
        yield
        line[1] = NO_IMAGE

    def left_by(self, processes: set[int]) -> list[int]:
        """The images that these processes were making."""
        lines: list[list[int]] = self.lines.tolist()
        return [image for pid, image in lines if pid in processes and image != NO_IMAGE]


def dead_workers(error: BaseException) -> set[int]:
    """Process ids, if this is PyTorch's error for workers that died; else none."""
    match = DIED.search(str(error)) if isinstance(error, RuntimeError) else None
    return {int(pid) for pid in re.findall(r"\d+", match[1])} if match else set()


def name_images(
    error: BaseException, left: Mapping[Desk, Callable[[int], str]]
) -> DataError | None:
    """An error that says what the dead workers were making; None if `error` is of another kind.

    Args:
        error: any.
        left: the desks, and how each calls an image.
    """
    processes = dead_workers(error)
    if not processes:
        return None
    names = [name(image) for desk, name in left.items() for image in desk.left_by(processes)]
    making = f"while it made {', '.join(names)}" if names else "between two images"
    return DataError(
        f"a loader process died {making} ({str(error).splitlines()[0].strip()}). If it was killed, "
        "memory may have run out: lower data.num_workers or data.batch_size. If it crashed, "
        "data.num_workers=0 brings the crash into the main process; take such an image out or "
        "write it anew, since data.on_error=skip only leaves out what the decoder refuses"
    )

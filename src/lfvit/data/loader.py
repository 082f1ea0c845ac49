"""The DataLoader that a resumed run can trust."""

from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader

SECONDS_TO_DIE = 2.0  # between a process's last word and its end


class BatchLoader(DataLoader[Any]):
    """PyTorch's, except that nothing is loaded before the first batch is asked for.

    Lightning begins to iterate before it restores a checkpoint, and loader processes would start on
    the order of another epoch. When it asks for the first batch, the sampler knows epoch and place.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        try:
            yield from batches
        except (ConnectionError, EOFError) as error:
            _raise_if_a_worker_died(batches, error)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning that the loader can be resumed; its place follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def _raise_if_a_worker_died(batches: Iterator[Any], error: Exception) -> None:
    """Say so in PyTorch's words: it does not where the worker died while it handed over a batch."""
    workers = {worker.sentinel: worker.pid for worker in getattr(batches, "_workers", ())}
    dead = [str(workers[sentinel]) for sentinel in wait(list(workers), timeout=SECONDS_TO_DIE)]
    if dead:
        message = f"DataLoader worker (pid(s) {', '.join(dead)}) exited unexpectedly"
        raise RuntimeError(message) from error

"""The DataLoader that a resumed run can trust."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class BatchLoader(DataLoader[Any]):
    """PyTorch's, except that nothing is loaded before the first batch is asked for.

    Lightning begins to iterate before it restores a checkpoint, and loader processes would start on
    the order of another epoch. When it asks for the first batch, the sampler knows epoch and place.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning that the loader can be resumed; its place follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

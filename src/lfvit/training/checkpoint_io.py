"""How checkpoints get to disk: a file is replaced when the new one is complete and synced."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lfvit.errors import StorageError
from lfvit.utils.atomic_io import write_atomic


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's, with a sync before the rename and one message where writing fails.

    Raises:
        StorageError: the file cannot be written; the one it would have replaced is still there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path):  # not a file of this machine
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()  # torch's own writer hides why a disk refuses
        torch.save(checkpoint, buffer)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent} cannot be made: {error.strerror}") from error
        write_atomic(path, buffer.getbuffer())

"""Remarks of the libraries to their own developers, which would bury what a command has to say."""

import logging
import warnings

REMARKS = (
    r".*torch\.jit\.\w+. is deprecated",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*exists and is not empty",
    r".*smaller than the logging interval",
    r".*does not have many workers",
    r".*lr_scheduler\.step\(\)",
    r".*predict returned None",  # a process without an image in its last batch
    r".*use `self\.log\('train/images_per_second'",
)


def filter_warnings() -> None:
    """Hide them in this process."""
    for message in REMARKS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)

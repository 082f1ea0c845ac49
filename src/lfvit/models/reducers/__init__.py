"""Token reduction inside the blocks of a ViT: fewer tokens from block to block, the same weights.

A reducer is a subclass of `Reducer`, registered by name. To add one, put a class like `evit.EViT`
into a new file of this package under ``@reducer("name")``: models, the check of settings, the cost
counter and the tests over the registry pick it up.
"""

import importlib
import pkgutil

from lfvit.models.reducers.base import (
    REDUCERS,
    Layout,
    Reducer,
    TokenState,
    ViTDims,
    reducer,
    reducing_blocks,
)

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "REDUCERS",
    "Layout",
    "Reducer",
    "TokenState",
    "ViTDims",
    "reducer",
    "reducing_blocks",
]

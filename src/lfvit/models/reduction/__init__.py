"""Token reduction inside the blocks of a ViT: fewer tokens from block to block, the same weights.

A reducer is a subclass of `Reducer`, found by name. To add one, put a class like `evit.EViT` into a
new file of this package under ``@reducer("name")``: models, configuration checks, cost counter and
the parametrised tests pick it up from the registry.
"""

import importlib
import pkgutil

from lfvit.models.reduction.registry import REDUCERS, Carried, Layout, Reducer, Shape, reducer

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REDUCERS", "Carried", "Layout", "Reducer", "Shape", "reducer"]

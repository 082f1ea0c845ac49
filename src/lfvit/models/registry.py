"""Functions and classes by name."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict that a decorator fills: ``@registry.register("name")``."""

    def register(self, name: str) -> Callable[[T], T]:
        def add(item: T) -> T:
            if name in self:
                raise ValueError(f"{name!r} is registered twice")
            self[name] = item
            return item

        return add


def registered_names(package: str) -> list[str]:
    """Names registered in the files of a package, without importing it, and thus PyTorch.

    Args:
        package: "selectors" or "reducers". Once it is imported, its registry is asked; until then
            the names are read off the decorators, such as ``@selector("ngca")``.
    """
    module = sys.modules.get(f"{__package__}.{package}")
    registry = getattr(module, package.upper(), None)
    if registry is not None:
        return sorted(registry)
    files = (Path(__file__).parent / package).glob("*.py")
    decorator = re.compile(r'^@\w+\("(\w+)"\)', re.MULTILINE)
    return sorted(name for file in files for name in decorator.findall(file.read_text()))

"""Selectors and reducers by name; torch-free, so that a wrong name is refused at once."""

import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lfvit.models.reducers import Reducer
    from lfvit.models.selectors import Selector

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """What the files of a package register with a decorator such as ``@selector("ngca")``.

    The names are read off the files, and a file is imported when one of its names is looked up.
    Code elsewhere may register further names.

    Args:
        package: "selectors" or "reducers".
    """

    def __init__(self, package: str) -> None:
        self._items: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        for file in (Path(__file__).parent / package).glob("*.py"):
            for name in re.findall(r'^@\w+\("(\w+)"\)', file.read_text(), re.MULTILINE):
                self._modules[name] = f"{__package__}.{package}.{file.stem}"

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a function or class under a name."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            import_module(self._modules[name])
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._modules.keys() | self._items.keys()))

    def __len__(self) -> int:
        return len(list(iter(self)))


SELECTORS: "Registry[Selector]" = Registry("selectors")
"""Names of ``method.selector`` -> function."""

REDUCERS: "Registry[type[Reducer]]" = Registry("reducers")
"""Names of ``reducer.name`` -> class."""

selector, reducer = SELECTORS.register, REDUCERS.register

"""One way to fuzz: a few examples in make test, and in make fuzz as many as its time allows.

An example that fails is made smaller, printed, and kept in .hypothesis/, where the next run of
either kind starts from it.
"""

import functools
import inspect
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""How long each target runs; 0 is a few examples, the same in every run."""

MEMORY, TIME = 3 * 2**30, 120
"""What one example may take: bytes above what the process has already, and seconds."""

Edit = tuple[str, int, int, bytes]
"""What to do, where, how far or where else, and with which bytes."""


class TooSlow(BaseException):
    """An example that does not end. No `except Exception` on the way can hide it."""


def fuzz(examples: int, **strategies: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """`given` with a time instead of a number of examples, where FUZZ_SECONDS says so."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def limited(*args: Any, **kwargs: Any) -> None:
            with limits():
                test(*args, **kwargs)

        each = settings(
            max_examples=500 if SECONDS else examples,
            derandomize=not SECONDS,
            print_blob=bool(SECONDS),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        checked = each(given(**strategies)(limited))

        @functools.wraps(checked)
        def for_a_time(*args: Any, **kwargs: Any) -> None:
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                checked(*args, **kwargs)

        for_a_time.__signature__ = inspect.signature(checked)  # type: ignore[attr-defined]
        return for_a_time if SECONDS else checked

    return decorate


@contextmanager
def limits(memory: int = MEMORY, seconds: int = TIME) -> Iterator[None]:
    """Refuse memory beyond a limit, and stop after a time."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"no end within {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def edits(most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """Changes to the bytes of a file, near its ends more often than in the middle."""
    where = st.one_of(st.integers(0, 127), st.integers(-256, -1), st.integers(0, 2**17))
    numbers = st.sampled_from([0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**63])
    words = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.builds(lambda number: number.to_bytes(8, "little"), numbers),
        st.builds(lambda number: (number % 2**32).to_bytes(4, "big"), numbers),
    )
    kinds = st.sampled_from(["flip", "put", "insert", "drop", "copy", "cut"])
    return st.lists(st.tuples(kinds, where, where, words), max_size=most)


def edited(data: bytes, changes: Sequence[Edit]) -> bytes:
    """`data` after some changes; places are counted around the end."""
    for kind, place, other, word in changes:
        if not data:
            return data
        at, to = place % len(data), other % len(data)
        match kind:
            case "flip":
                data = data[:at] + bytes([data[at] ^ (1 << other % 8)]) + data[at + 1 :]
            case "put":
                data = data[:at] + word + data[at + len(word) :]
            case "insert":
                data = data[:at] + word + data[at:]
            case "drop":
                data = data[: min(at, to)] + data[max(at, to) :]
            case "copy":
                data = data[:at] + data[to : to + 64] + data[at:]
            case "cut":
                data = data[:at]
    return data


def values() -> st.SearchStrategy[Any]:
    """Anything a JSON file, a config or a checkpoint's record may hold."""
    numbers = [-1, 0, 1, 2, 3, 10**9, 2**63, -0.5, 0.5, 1e308, float("nan"), float("inf")]
    leaves = st.one_of(st.none(), st.booleans(), st.sampled_from(numbers), st.text(max_size=6))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=4,
    )


def places_of(content: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value inside nested dicts and lists."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    return [way for key, value in items for way in [(*path, key), *places_of(value, (*path, key))]]


def replaced(content: Any, place: tuple, value: Any) -> Any:
    """A copy with another value in one place; without the place where the value is `places_of`."""
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(place) == 1 and value is places_of:
        del copy[place[0]]
    else:
        copy[place[0]] = replaced(content[place[0]], place[1:], value)
    return copy

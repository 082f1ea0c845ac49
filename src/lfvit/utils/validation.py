"""Checks of settings. Each names the setting, its value and what would be valid."""

from collections.abc import Iterable
from typing import Any

from lfvit.errors import ConfigError


def check_choice(name: str, value: Any, valid: Iterable[str]) -> None:
    """`value` is one of a few words."""
    valid = list(valid)
    if value not in valid:
        raise ConfigError(f"{name}={value!r} is unknown; valid: {', '.join(valid)}")


def check_switch(name: str, value: Any) -> None:
    """`value` is on or off."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be true or false")


def check_whole(name: str, value: Any, least: int) -> None:
    """`value` is a whole number, at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}={value!r} must be a whole number, {least} or more")


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """`value` is a number from `low` to `high`; `above` and `below` leave the ends out."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number:
        low_ok = value > low if above else value >= low
        high_ok = high is None or (value < high if below else value <= high)
        if low_ok and high_ok:
            return
    start = f"above {low:g}" if above else f"from {low:g}"
    end = "" if high is None else f" and below {high:g}" if below else f" up to {high:g}"
    raise ConfigError(f"{name}={value!r} is out of range; valid: a number {start}{end}")


def check_names(group: str, settings: Iterable[str], valid: Iterable[str]) -> None:
    """Every name is one that exists."""
    valid = list(valid)
    unknown = sorted(set(settings) - set(valid))
    if unknown:
        names = ", ".join(valid) or "none"
        raise ConfigError(f"{group} has no setting {unknown[0]!r}; valid: {names}")

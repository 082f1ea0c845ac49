"""What the report needs of the files of a run, so that a damaged one is told from the others.

A shape is a mapping of keys to shapes ("key?": may be missing or null), a list of one shape, a
tuple of shapes of which one has to fit, None, or a `Value`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lfvit.errors import DataError
from lfvit.measure.schemas import parse_evaluation
from lfvit.results.old.legacy import legacy

DEEPEST = 40  # levels of nesting; the files that commands write have fewer than ten


class Value(NamedTuple):
    """What a single value has to be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _between(low: float, high: float, words: str, kinds: Any = (int, float)) -> Value:
    """NaN lies between nothing; true and false are no numbers here."""

    def fits(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return Value(words, fits)


def _pairs(value: Any) -> bool:
    """Whether this is the JSON of a list of names and values, as in a row of benchmark.json."""
    try:
        return isinstance(dict(json.loads(value)), dict)
    except (TypeError, ValueError, RecursionError):
        return False


TEXT = Value("a text", lambda value: isinstance(value, str))
NUMBER = _between(-1e12, 1e12, "a number")
ABOVE_ZERO = _between(1e-12, 1e12, "a number above 0")
PERCENT = _between(0, 100, "a number from 0 to 100")
SHARE = _between(0, 1, "a number from 0 to 1")
WHOLE = _between(0, 2**62, "a whole number from 0", int)
COUNT = _between(1, 2**53, "a whole number from 1", int)
NOTHING = Value("empty", lambda value: value == [])
PAIRS = Value("JSON of pairs", _pairs)

ENVIRONMENT: dict[str, Any] = {
    "command?": TEXT,
    "commit?": TEXT,
    "machine?": TEXT,
    "threads?": WHOLE,
    "packages?": {},
}
ROW: dict[str, Any] = {
    "images_per_second": ABOVE_ZERO,
    "settings": PAIRS,
    "batch_size": COUNT,
    "gmacs": ABOVE_ZERO,
    "exit_fraction?": SHARE,
    "precision?": TEXT,
    "task?": TEXT,
    "exits?": TEXT,
}
SHAPES: dict[str, tuple[str, Any]] = {
    "benchmark.json": ("benchmark.py", {"rows": [ROW], "environment?": {"machine?": TEXT}}),
    "metrics.json": (
        "train.py",
        {
            "machine": TEXT,
            "epochs": WHOLE,
            "train_images": COUNT,
            "parameters": COUNT,
            "train_seconds": NUMBER,
        },
    ),
    "environment.json": (
        "train.py",
        {**ENVIRONMENT, "command": TEXT, "threads": WHOLE, "packages": {"torch": TEXT}},
    ),
    "run.json": ("train.py", {"status?": TEXT}),
    "job.json": ("a sweep", {"status?": TEXT, "evaluation?": TEXT}),
    "config.yaml": (
        "Hydra",
        {"seed?": WHOLE, "data?": {"root?": TEXT}, "init_from?": TEXT, "ckpt_path?": TEXT},
    ),
}
"""Name of a file -> who writes it, and what of it the report relies on."""


def load(path: Path) -> dict[str, Any]:
    """The contents of one of these files, as plain JSON values.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else, in words.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else _yaml(text)
        deep = _levels(content) > DEEPEST
        # dates become words and all keys too; half of a surrogate pair cannot be written
        plain = json.dumps(content, ensure_ascii=False, default=str)
        plain.encode()
    except RecursionError:
        deep, plain = True, ""
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (LookupError, AttributeError, TypeError) as error:  # PyYAML, of `!!int` before nothing
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if deep:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if "\\u0000" in plain:
        raise ValueError("a NUL character")
    content = json.loads(plain)
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    if path.name == "evaluate.json":
        try:
            return legacy(parse_evaluation(content, "the file"))
        except DataError as error:
            raise ValueError(str(error)) from error
    writer, shape = SHAPES[path.name]
    if content and (found := _fault(content, shape)):
        raise ValueError(f"not as {writer} writes it ({found})")
    return content


def _yaml(text: str) -> Any:
    """Without aliases, which no config here has: a few lines of them may stand for gigabytes."""
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("an alias")
    return yaml.safe_load(text)


def _levels(content: Any) -> int:
    level, depth = [content], 0
    while level and depth <= DEEPEST:
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [value for values in inner if not isinstance(values, str) for value in _all(values)]
        depth += 1
    return depth


def _all(values: Any) -> list[Any]:
    return [] if not hasattr(values, "__iter__") else list(values)


def _fault(value: Any, shape: Any, place: str = "") -> str | None:
    """The first thing that does not fit, in words."""
    where = place or "the file"
    if shape is None:
        return None if value is None else f"{where} is not null"
    if isinstance(shape, Value):
        return None if shape.fits(value) else f"{where} is not {shape.words}: {_short(value)}"
    if isinstance(shape, tuple):
        faults = [_fault(value, each, place) for each in shape]
        return None if None in faults else faults[-1]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is not a list"
        if not value and place == "curve":
            return "curve is empty"
        found = (_fault(each, shape[0], f"{place}[{i}]") for i, each in enumerate(value))
        return next((fault for fault in found if fault), None)
    if not isinstance(value, dict):
        return f"{where} is not a mapping"
    return next((fault for key in shape if (fault := _at(value, key, shape[key], place))), None)


def _at(value: dict[str, Any], key: str, shape: Any, place: str) -> str | None:
    name = key.removesuffix("?")
    full = f"{place}.{name}" if place else name
    if name != key and value.get(name) is None:
        return None
    return _fault(value[name], shape, full) if name in value else f"{full} is missing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"

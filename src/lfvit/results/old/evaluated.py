"""One evaluated run, as its files tell it, and what to call it among others."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

NAMES = {"lf_vit": "LF-ViT", "cf_vit": "CF-ViT", "vit": "ViT"} | {
    "evit": "EViT",
    "tome": "ToMe",
    "dynamic_vit": "DynamicViT",
    "frequency": "frequency",
}


@dataclass(frozen=True)
class Run:
    """One evaluation and the training behind it: the contents of their files.

    place: its folder, from the folder all of them are in. settings: of the evaluation. The rest is
    that of the training, and empty where it is not known.
    """

    folder: Path
    place: str
    evaluation: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "done"
    start: str = ""  # the weights that the training started from, in words
    given: str | None = None  # what `names` of `collect` calls it
    model: str = ""  # readable, the same for all seeds of a group
    name: str = ""  # the same, with the seed or the place where there are several
    key: str = "{}"  # of its group, as JSON

    @property
    def group(self) -> str:
        """Names what runs have in common that differ only in their seed."""
        key = json.dumps(json.loads(self.key), sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest()[:8]

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def two_pass(self) -> bool:
        return self.evaluation["second"] is not None

    @property
    def data(self) -> str:
        """The images in words."""
        kind = str(self.evaluation.get("data", "")).removesuffix("DataModule").lower()
        root = (self.settings.get("data") or {}).get("root")
        root = root or (self.config.get("data") or {}).get("root")
        return Path(root).name if root else f"{kind} (generated)" if kind == "needle" else kind


def named(runs: list[Run]) -> list[Run]:
    """The runs with names that tell them apart: method, data, settings, seed, and at last place.

    Where a name was given, it stands for method and data.
    """
    several = len({run.data for run in runs}) > 1
    models = [
        run.given or (f"{kind_of(run)}, {run.data}" if several else kind_of(run)) for run in runs
    ]
    groups = [run.group for run in runs]
    for more in (_differences, _places):
        models = _longer(models, groups, more, runs)
    runs = [replace(run, model=model) for run, model in zip(runs, models, strict=True)]
    names, places = models, [run.place for run in runs]
    for more in (_seeds, _places):
        names = _longer(names, places, more, runs)
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _longer(
    names: list[str],
    identities: list[str],
    more: Callable[[list[Run]], list[str]],
    runs: list[Run],
) -> list[str]:
    """The names, with ``more`` added to each that stands for several identities."""
    names = list(names)
    for name in dict.fromkeys(names):
        same = [i for i, other in enumerate(names) if other == name]
        if len({identities[i] for i in same}) == 1:
            continue
        texts = more([runs[i] for i in same])
        if len(set(texts)) > 1:
            for i, text in zip(same, texts, strict=True):
                names[i] = f"{name}, {text}" if text else name
    return names


def _seeds(runs: list[Run]) -> list[str]:
    return [f"seed {run.seed}" for run in runs]


def _places(runs: list[Run]) -> list[str]:
    return [run.place for run in runs]


def kind_of(run: Run) -> str:
    """Method and reducer as people write them; "as is": put into weights trained without it."""
    method = run.evaluation["method"]["name"]
    reducer = (run.evaluation.get("reducer") or {}).get("name", "none")
    name = NAMES.get(method, method)
    if reducer == "none":
        return name
    trained = (run.config.get("reducer") or {}).get("name", reducer)
    as_is = "" if trained == reducer else " as is"
    return f"{name} + {NAMES.get(reducer, reducer)}{as_is}"


def _differences(runs: list[Run]) -> list[str]:
    """What each run of several was set to where they differ, in words."""
    flat = [flatten(json.loads(run.key)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    told: dict[str, list[str]] = {}
    for key in keys:
        values = [settings.get(key) for settings in flat]
        if len({json.dumps(value) for value in values}) > 1:
            texts = [_short(value) for value in values]
            if texts not in told.values():  # a setting and what follows from it is one difference
                told[key] = texts
    said = {key: texts for key, texts in told.items() if not _follows(key, told)}
    few = dict(list((said or told).items())[:3])
    last = [key.rpartition(".")[2] for key in few]
    names = [
        name if last.count(name) == 1 else ".".join(key.split(".")[-2:])
        for name, key in zip(last, few, strict=True)
    ]
    return [
        ", ".join(f"{name}={texts[i]}" for name, texts in zip(names, few.values(), strict=True))
        for i in range(len(runs))
    ]


def _follows(key: str, told: Mapping[str, Any]) -> bool:
    """Whether it is a setting of earlier weights, or what told the evaluation of the model's."""
    settings = key.removeprefix("evaluation.")
    return ".init_from." in key or (settings != key and f"model.{settings}" in told)


def _short(value: Any) -> str:
    if value is None:
        return "default"
    text = Path(value).name if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:23] + "…"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots; empty groups are left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

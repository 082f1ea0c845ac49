"""Names that tell evaluated models apart: method, data, settings that differ, seed, folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from lfvit.results.collect import Run

METHODS = {
    "lf_vit": "LF-ViT",
    "cf_vit": "CF-ViT",
    "dvt": "DVT-like",
    "vit": "ViT",
    "evit": "EViT",
    "tome": "ToMe",
    "dynamic_vit": "DynamicViT",
    "topk": "Top-K",
    "dpc_knn": "DPC-KNN",
    "k_medoids": "K-Medoids",
    "patch_merger": "PatchMerger",
    "sinkhorn": "Sinkhorn",
    "sit": "SiT",
    "tofu": "ToFu",
    "ats": "ATS",
    "evo_vit": "Evo-ViT",
    "a_vit": "A-ViT",
}
MAX_SETTINGS = 3  # in a name
MAX_LENGTH = 24  # characters of a value


def with_names(runs: Sequence["Run"]) -> list["Run"]:
    """Fill in `Run.model`, equal for all seeds of a model, and `Run.name`, of a run alone.

    A label that was given stands for method and data.
    """
    several = len({run.data for run in runs}) > 1
    models = [
        run.label or (f"{method_name(run)}, {run.data}" if several else method_name(run))
        for run in runs
    ]
    groups, paths = [run.group for run in runs], [run.path for run in runs]
    models = _lengthen(models, groups, runs, _differences)
    models = _lengthen(models, groups, runs, lambda same: [run.path for run in same])
    names = _lengthen(models, paths, runs, lambda same: [f"seed {run.seed}" for run in same])
    names = _lengthen(names, paths, runs, lambda same: [run.path for run in same])
    known = zip(runs, models, names, strict=True)
    return [replace(run, model=model, name=name) for run, model, name in known]


def method_name(run: "Run") -> str:
    """Method and reducer, such as "LF-ViT + ToMe"; "as is": added to weights trained without it."""
    method, reducer = str(run.evaluation.method["name"]), str(run.evaluation.reducer["name"])
    name = METHODS.get(method, method)
    if reducer == "none":
        return name
    trained = (run.config.get("reducer") or {}).get("name", reducer)
    return f"{name} + {METHODS.get(reducer, reducer)}{'' if trained == reducer else ' as is'}"


def _lengthen(
    names: list[str],
    keys: list[str],
    runs: Sequence["Run"],
    suffixes: Callable[[list["Run"]], list[str]],
) -> list[str]:
    """The names, with a suffix where one stands for several keys."""
    table = pd.DataFrame({"name": names, "key": keys})
    for name, same in table.groupby("name", sort=False):
        if same["key"].nunique() > 1:
            added = suffixes([runs[i] for i in same.index])
            if len(set(added)) > 1:
                table.loc[same.index, "name"] = [
                    f"{name}, {text}" if text else name for text in added
                ]
    return list(table["name"])


def _differences(runs: list["Run"]) -> list[str]:
    """The settings in which runs differ, such as "alpha=0.5, lr=0.001"."""
    text = pd.json_normalize([run.settings_key for run in runs]).map(_format)
    text = text.loc[:, text.nunique() > 1]
    # a setting and what is derived from it are one difference
    text = text.loc[:, ~text.T.duplicated().to_numpy()]
    own = text.loc[:, ~text.columns.str.contains(r"\.(?:init_from|teacher)\.")]
    text = own if len(own.columns) else text
    telling = list[str]()  # first those without which two runs would be one
    for key in text:
        kinds = len(text[telling].drop_duplicates()) if telling else 1
        if len(text[[*telling, key]].drop_duplicates()) > kinds:
            telling.append(key)
    shown = [*telling, *(key for key in text if key not in telling)][:MAX_SETTINGS]
    text = text[[key for key in text if key in shown]]
    last = [key.rpartition(".")[2] for key in text]
    unique = [n if last.count(n) == 1 else key for n, key in zip(last, text, strict=True)]
    text = text.set_axis(unique, axis=1)
    return [", ".join(f"{k}={v}" for k, v in row.items()) for row in text.to_dict("records")]


def _format(value: Any) -> str:
    if value is None or value != value:
        return "default"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = Path(text).name if isinstance(value, str) else text
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"

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
    "vit": "ViT",
    "evit": "EViT",
    "tome": "ToMe",
    "dynamic_vit": "DynamicViT",
}
MAX_SETTINGS = 3  # in a name
MAX_LENGTH = 24  # characters of a value


def with_names(runs: Sequence["Run"]) -> list["Run"]:
    """Fill in `Run.model`, equal for all seeds of a model, and `Run.name`, of a run alone.

    A label that was given stands for method and data.
    """
    if not runs:
        return []
    several = len({run.data for run in runs}) > 1
    frame = pd.DataFrame(
        {
            "model": [
                run.label or (f"{method_name(run)}, {run.data}" if several else method_name(run))
                for run in runs
            ],
            "group": [run.group for run in runs],
            "path": [run.path for run in runs],
            "seed": [f"seed {run.seed}" for run in runs],
            "run": runs,
        }
    )
    frame["model"] = _lengthen(frame, "model", "group", lambda rows: _differences(rows["run"]))
    frame["model"] = _lengthen(frame, "model", "group", lambda rows: rows["path"])
    frame["name"] = _lengthen(frame, "model", "path", lambda rows: rows["seed"])
    frame["name"] = _lengthen(frame, "name", "path", lambda rows: rows["path"])
    return [replace(row.run, model=row.model, name=row.name) for row in frame.itertuples()]


def method_name(run: "Run") -> str:
    """Method and reducer, such as "LF-ViT + ToMe"; "as is": added to weights trained without it."""
    method = run.evaluation.method["name"]
    reducer = run.evaluation.reducer.get("name", "none")
    name = METHODS.get(method, method)
    if reducer == "none":
        return name
    trained = (run.config.get("reducer") or {}).get("name", reducer)
    return f"{name} + {METHODS.get(reducer, reducer)}{'' if trained == reducer else ' as is'}"


def _lengthen(
    frame: pd.DataFrame, name: str, key: str, suffixes: Callable[[pd.DataFrame], "pd.Series[str]"]
) -> "pd.Series[str]":
    """The column `name`, with a suffix where it stands for several values of `key`."""
    longer = frame[name].copy()
    for _, rows in frame.groupby(name, sort=False):
        if rows[key].nunique() > 1:
            added = suffixes(rows)
            if added.nunique() > 1:
                longer[rows.index] = rows[name] + added.map(lambda text: f", {text}" * bool(text))
    return longer


def _differences(runs: "pd.Series[Any]") -> "pd.Series[str]":
    """The settings in which runs differ, such as "alpha=0.5, lr=0.001"."""
    settings = pd.json_normalize([run.settings_key for run in runs])
    settings.index = runs.index
    text = settings.map(_format)
    text = text.loc[:, text.nunique() > 1]
    # a setting and what is derived from it are one difference
    text = text.loc[:, ~text.T.duplicated().to_numpy()]
    stated = text[[name for name in text if not _is_implied(str(name), text)]]
    text = (stated if len(stated.columns) else text).iloc[:, :MAX_SETTINGS]
    last = [name.rpartition(".")[2] for name in text]
    short = [
        name if last.count(name) == 1 else ".".join(full.split(".")[-2:])
        for name, full in zip(last, text, strict=True)
    ]
    return text.apply(
        lambda row: ", ".join(f"{n}={v}" for n, v in zip(short, row, strict=True)), axis=1
    )


def _is_implied(name: str, settings: pd.DataFrame) -> bool:
    """Whether it is a setting of the initial weights, or one of the model's that was overridden."""
    inner = name.removeprefix("evaluation.")
    return ".init_from." in name or (inner != name and f"model.{inner}" in settings)


def _format(value: Any) -> str:
    if value is None or value != value:
        return "default"
    text = Path(value).name if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_LENGTH else text[: MAX_LENGTH - 1] + "…"

"""The report page: one HTML file with a chart, tables, artifacts, examples and provenance.

Script, style, numbers and pictures are inside, and its content security policy admits nothing else.
Tables and a static chart are there without JavaScript.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from lfvit.results import page_data
from lfvit.results.collect import Collection, collect
from lfvit.results.page_chart import AXES, COLOURS, accuracy_chart, render_chart
from lfvit.results.page_examples import choose_models, make_examples
from lfvit.results.provenance import without_paths
from lfvit.results.report import FORMATS, POINT_TITLES
from lfvit.runs.directory import is_name
from lfvit.runs.provenance import commit
from lfvit.utils.markdown import Cells, format_cells

HERE = Path(__file__).parent
MAX_FEATURED = 12  # models shown at once unless some were chosen
PAGE_FORMATS = FORMATS | {
    "top1_std": ".2f",
    "share": ".0f",
    "images_per_second": ",.0f",
    "chosen_on": ",",
    "train_images": ",",
    "parameters": ",",
    "train_seconds": ",.0f",
}
TITLES = POINT_TITLES | {
    "top1_std": "±",
    "share": "of one pass (%)",
    "images_per_second": "images/s",
    "chosen_on": "chosen on",
    "path": "folder",
    "train_images": "training images",
    "train_seconds": "seconds",
    "evaluation_command": "evaluated with",
    "evaluation_commit": "evaluated at",
    "command": "trained with",
    "commit": "trained at",
}
POINTS = (
    *("model", "rule", "seeds", "threshold", "top1", "top1_std", "gmacs", "share"),
    *("exit_fraction", "consistency", "images_per_second", "chosen_on", "images"),
)
CURVE = ("threshold", "top1", "exit_fraction", "gmacs")
RUNS = (
    *("path", "model", "seed", "epochs", "train_images", "parameters", "train_seconds", "machine"),
    *("commit", "evaluation_commit", "precision", "status", "command", "evaluation_command"),
)


def write_page(
    folders: Sequence[Path] | Collection,
    output: Path,
    *,
    artifacts: Path | None = None,
    title: str = "Results",
    intro: str = "",
    examples: int = 8,
    featured: Sequence[str] = (),
) -> None:
    """Write the report page about all runs in some folders.

    Args:
        folders: see `collect`; or what it returned.
        output: the HTML file.
        artifacts: a folder with index.json; None takes ``artifacts/`` of the first folder with one.
        title: of the page.
        intro: a paragraph under it.
        examples: how many images to show, computed from checkpoints and validation images.
        featured: models (`Run.model`) that are shown first, in this order; the others can be
            switched on. By default all, or the first `MAX_FEATURED`.

    Raises:
        DataError: no run was evaluated, or a folder is not there.
    """
    collection = folders if isinstance(folders, Collection) else collect(folders)
    collection.require_runs()
    if artifacts is None:
        near = [parent for run in collection.runs for parent in list(run.folder.parents)[:4]]
        if not isinstance(folders, Collection):
            near = [Path(folder) for folder in folders]
        found = (folder / "artifacts" for folder in near)
        artifacts = next((folder for folder in found if (folder / "index.json").is_file()), None)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    numbers = _numbers(collection, featured)
    vega, static = render_chart(numbers["spec"])
    scripts = [vega, (HERE / "page.js").read_text(encoding="utf-8")]
    text = environment.get_template("page.html").render(
        title=title,
        intro=intro,
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts],
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        commit=commit(),
        examples=make_examples(choose_models(collection.runs), examples) if examples else None,
        artifacts=[] if artifacts is None else read_artifacts(artifacts),
        skipped=collection.skipped,
        static=static,
        **numbers,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def _numbers(collection: Collection, featured: Iterable[str]) -> dict[str, Any]:
    """The chart and the tables."""
    known = list(collection.by_model())
    first = [model for model in dict.fromkeys(featured) if model in known] or known[:MAX_FEATURED]
    models = [*first, *(model for model in known if model not in first)]
    curves, points = page_data.curves(collection), page_data.points(collection)
    points = points.sort_values("model", key=lambda names: names.map(models.index), kind="stable")
    imagenet = any(run.evaluation.images == 50_000 for run in collection.runs)
    x = "gmacs" if imagenet or points["share"].isna().all() else "share"
    comparable = imagenet or x == "share"
    reasons = points["reason"].map(lambda reason: f": {reason}" if isinstance(reason, str) else "")
    table = points.assign(
        rule=points["rule"].str.replace("<=", " ≤ ") + reasons,
        chosen_on=points["chosen_on"].where(points["chosen_on"] > 0).astype("Int64"),
    )
    runs = collection.table.drop_duplicates("path").astype(object)
    for name in ("command", "evaluation_command"):
        runs[name] = runs[name].map(lambda text: without_paths(str(text)), na_action="ignore")
    return {
        "spec": accuracy_chart(
            models, len(first), curves, points, page_data.published(), x, comparable
        ),
        "axes": {key: (text, points[key].notna().any(), key == x) for key, text in AXES.items()},
        "models": [(model, i % COLOURS, model in first) for i, model in enumerate(models)],
        "points": _cells(table, POINTS),
        "curves": [
            (model, _cells(rows, CURVE, threshold=".2f"))
            for model in models
            if len(rows := curves[curves["model"] == model])
        ],
        "runs": _cells(runs, RUNS),
        "data": sorted({(run.data, run.evaluation.images) for run in collection.runs}),
        "imagenet": imagenet,
        "show_published": comparable,
        "throughput_from": sorted(set(collection.table["throughput_from"].dropna())),
    }


def _cells(table: pd.DataFrame, columns: Iterable[str], **formats: str) -> Cells:
    """The columns that have values, as text."""
    titles = {name: TITLES.get(name, name) for name in columns if table[name].notna().any()}
    return format_cells(table, PAGE_FORMATS | formats, titles)


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """The artifacts in index.json; one that cannot be read has the reason as its ``fault``."""
    try:
        names = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        names = names["names"] if isinstance(names, dict) else names
        names = [str(name["name"] if isinstance(name, dict) else name) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [{"name": "index.json", "fault": f"cannot be read: {error}"}]
    return [_read_artifact(folder / name, name) for name in names]


def _read_artifact(folder: Path, name: str) -> dict[str, Any]:
    if not is_name(name):
        return {"name": name, "fault": "index.json may only name folders beside it"}
    try:
        artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        columns, rows = artifact.get("columns") or [], artifact.get("rows") or []
        titles, formats = {}, {}
        for column in columns:
            key, unit, digits = column["key"], column.get("unit"), column.get("digits") or 0
            title = str(column.get("title") or key)
            titles[key] = f"{title} ({unit})" if unit and unit not in title else title
            if unit or digits:
                formats[key] = f"{'+' if key.endswith('_difference') else ''}.{digits}f"
        cells = format_cells(rows, formats, titles) if rows and titles else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"name": name, "fault": f"artifact.json cannot be read: {error}"}
    absent = ("paper", "question", "scale", "label", "command", "commit", "machine", "written")
    pictures = [folder / f"{name}.{suffix}" for suffix in ("svg", "png")]
    picture = next((_data_uri(path) for path in pictures if path.is_file()), None)
    return {
        **dict.fromkeys(absent),
        "title": name,
        "notes": [],
        **artifact,
        "name": name,
        "cells": cells,
        "picture": picture if artifact.get("kind") == "figure" else None,
        "fault": None,
    }


def _data_uri(path: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

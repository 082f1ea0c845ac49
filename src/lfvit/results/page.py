"""The report page: one HTML file with a chart, tables, artifacts, examples and provenance.

Script, style, numbers and pictures are inside, and its content security policy admits nothing else.
Tables and a static chart are there without JavaScript.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from lfvit.results.artifacts.files import read_artifacts
from lfvit.results.collect import Collection, collect
from lfvit.results.page_chart import (
    AXES,
    COLOURS,
    accuracy_chart,
    learning_chart,
    read_curves,
    render_charts,
)
from lfvit.results.page_examples import choose_models, make_examples
from lfvit.results.papers import published_points
from lfvit.results.provenance import without_paths
from lfvit.results.table import mean_curves, mean_points, points_cells, table_cells
from lfvit.runs.provenance import commit

HERE = Path(__file__).parent
MAX_FEATURED = 12  # models shown at once unless some were chosen
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
    learned = read_curves(collection.runs)
    charts = [numbers["spec"], *([learning_chart(learned)] if len(learned) else [])]
    vega, (static, *learning) = render_charts(*charts)
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
        learning=learning,
        **numbers,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, "utf-8", "backslashreplace")


def _numbers(collection: Collection, featured: Iterable[str]) -> dict[str, Any]:
    """The chart and the tables."""
    known = list(collection.by_model())
    first = [model for model in dict.fromkeys(featured) if model in known] or known[:MAX_FEATURED]
    models = [*first, *(model for model in known if model not in first)]
    curves, points = mean_curves(collection), mean_points(collection)
    points = points.sort_values("model", key=lambda names: names.map(models.index), kind="stable")
    imagenet = any(run.evaluation.images == 50_000 for run in collection.runs)
    x = "gmacs" if imagenet or points["share"].isna().all() else "share"
    published = published_points()
    runs = collection.table.drop_duplicates("path").astype(object)
    for name in ("command", "evaluation_command"):
        runs[name] = runs[name].map(lambda text: without_paths(str(text)), na_action="ignore")
    return {
        "spec": accuracy_chart(
            models, len(first), curves, points, published if imagenet else published[:0], x
        ),
        "axes": {key: (text, points[key].notna().any(), key == x) for key, text in AXES.items()},
        "models": [(model, i % COLOURS, model in first) for i, model in enumerate(models)],
        "points": points_cells(points),
        "curves": [
            (model, table_cells(rows, CURVE, threshold=".2f"))
            for model in models
            if len(rows := curves[curves["model"] == model])
        ],
        "runs": table_cells(runs, RUNS),
        "data": collection.data,
        "imagenet": imagenet,
        "throughput_from": sorted(set(collection.table["throughput_from"].dropna())),
    }

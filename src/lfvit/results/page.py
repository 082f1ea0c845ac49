"""The report page: one HTML file with charts, thresholds, artifacts, examples and provenance.

It needs no network: script, style, numbers and pictures are inside, and its content security policy
lets nothing else in. Tables, texts and static charts are there without JavaScript as well.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from lfvit.errors import DataError
from lfvit.results.old.collect import Collection, collect, nothing_found
from lfvit.results.old.evaluated import Run
from lfvit.results.old.frame import over_seeds
from lfvit.results.old.plots import plot_comparison
from lfvit.results.old.speeds import INTERPOLATED
from lfvit.results.old.tables import RISKS
from lfvit.results.page_data import (
    IMAGENET_IMAGES,
    curves,
    number,
    one_pass_gmacs,
    published,
    series,
)
from lfvit.results.page_examples import choose_models, make_examples
from lfvit.results.provenance import without_paths
from lfvit.runs.directory import is_name
from lfvit.runs.provenance import commit

HERE = Path(__file__).parent
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
STATIC_STEP = 10  # every so many thresholds are in the table
MOST = 12  # models that are shown at once if nobody chose


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
        examples: how many images to show; 0 for none. Made from checkpoints and validation images.
        featured: models (`Run.model`) that are shown first, in this order; the others can be
            switched on. Without one that is there, all are, or the first `MOST`.

    Raises:
        DataError: not one run was evaluated, or a folder is not there.
    """
    if isinstance(folders, Collection):
        found, near = folders, [run.folder for run in folders.runs]
        near = [parent for folder in near for parent in list(folder.parents)[:3]]
    else:
        found, near = collect(folders), [Path(folder) for folder in folders]
    if not found.runs:
        raise DataError(nothing_found(found))
    found, first = _featured_first(found, featured)
    if artifacts is None:
        artifacts = next((f / "artifacts" for f in near if _has_index(f / "artifacts")), None)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"fixed": fixed, "percent": percent}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    text = environment.get_template("page.html").render(
        title=title,
        intro=intro,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        commit=commit(),
        examples=make_examples(choose_models(found.runs), examples) if examples else None,
        artifacts=[] if artifacts is None else read_artifacts(artifacts),
        **_content(found, first),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


def _has_index(folder: Path) -> bool:
    return (folder / "index.json").is_file()


def _featured_first(
    found: Collection, featured: Iterable[str]
) -> tuple[Collection, frozenset[str]]:
    """The runs of featured models before the others, and which models these are."""
    there = list(dict.fromkeys(run.model for run in found.runs))
    chosen = [model for model in dict.fromkeys(featured) if model in there] or there[:MOST]
    order = {model: number for number, model in enumerate(chosen)}
    runs = sorted(found.runs, key=lambda run: order.get(run.model, len(order)))
    return replace(found, runs=runs), frozenset(chosen)


def _content(found: Collection, first: frozenset[str]) -> dict[str, Any]:
    """All numbers; ``first``: models that are shown before the others."""
    entries = [{**entry, "featured": entry["name"] in first} for entry in series(found)]
    shown = [run for run in found.runs if run.model in first]
    drawn = {
        "series": [*entries, *published()],
        "curves": curves(found.runs),
        "imagenet": any(run.evaluation["images"] == IMAGENET_IMAGES for run in found.runs),
    }
    means = over_seeds(found.table)
    one_pass = {run.group: one_pass_gmacs(found.runs, run) for run in found.runs}
    rows = [
        {key: number(value) for key, value in row.items()}
        | {"one_pass": one_pass[row["group"]], "featured": row["model"] in first}
        for row in means.to_dict("records")
    ]
    return {
        "data": drawn,
        "summaries": [_summary(entry) for entry in entries],
        "fast": [_speeds(entry) for entry in entries],
        "rows": [row for row in rows if row["kind"] != "certificate"],
        "runs": [{**_about(run), "featured": run in shown} for run in found.runs],
        "tables": [
            {**_threshold_rows(run), "featured": run in shown}
            for run in found.runs
            if run.evaluation.get("curve")
        ],
        "certificates": [
            {**certified, "featured": run in shown}
            for run in found.runs
            if (certified := _certificates(run)) is not None
        ],
        "several_seeds": bool((means["seeds"] > 1).any()),
        "datas": sorted({(run.data, run.evaluation["images"]) for run in found.runs}),
        "static": _static(shown),
        "skipped": found.skipped,
        "risks": RISKS,
    }


def _summary(entry: dict[str, Any]) -> str:
    """One model of the chart in a sentence."""
    passes = [point for point in entry["points"] if point["kind"] == "pass"]
    return f"{entry['name']}: " + "; ".join(
        f"{point['run']}, {point['top1']:.2f} % at {point['gmacs']:.4g} GMACs" for point in passes
    )


def _speeds(entry: dict[str, Any]) -> dict[str, Any]:
    """What is known of one model's throughput."""
    timed = [point for point in entry["points"] if point["speed"] is not None]
    return {
        "name": entry["name"],
        "missing": len(entry["points"]) - len(timed),
        "points": timed,
        "how": sorted({point["how"].removesuffix(INTERPOLATED) for point in timed}),
    }


def _threshold_rows(run: Run) -> dict[str, Any]:
    curve = run.evaluation["curve"]
    return {"name": run.name, "points": [*curve[:-1:STATIC_STEP], curve[-1]]}


def _certificates(run: Run) -> dict[str, Any] | None:
    calibration = run.evaluation.get("calibration") or {}
    risk = calibration.get("risk")
    if not risk:
        return None
    return {
        "name": run.name,
        "chosen_on": calibration["calibration_images"],
        "reported_on": calibration["reported_images"],
        **risk,
    }


def _about(run: Run) -> dict[str, Any]:
    metrics, trained = run.metrics, run.environment
    evaluated = run.evaluation.get("environment") or {}
    return {
        "run": run,
        "metrics": metrics,
        "command": without_paths(trained["command"]) if trained.get("command") else None,
        "trained": trained,
        "evaluated": evaluated,
        "evaluation_command": without_paths(evaluated.get("command") or ""),
        "packages": ", ".join(
            f"{name} {version}"
            for name, version in (
                trained.get("packages") or evaluated.get("packages") or {}
            ).items()
            if version
        ),
        "localisation": run.evaluation.get("localisation"),
        "temperature": (run.evaluation.get("calibration") or {}).get("temperature"),
    }


def _static(runs: Sequence[Run]) -> str:
    """Accuracy against cost as a picture, without JavaScript: one seed of each model."""
    models = {run.model: run.evaluation for run in reversed(runs)}  # the first seed stays
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.svg"
        plot_comparison(dict(reversed(models.items())), [path])
        return _data_uri(path)


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """The artifacts that index.json lists; one that cannot be read says why in its place."""
    try:
        names = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        names = names["names"] if isinstance(names, dict) else names
        names = [str(name["name"] if isinstance(name, dict) else name) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [{"name": "index.json", "fault": f"cannot be read: {error}"}]
    return [_artifact(folder / name, name) for name in names]


def _artifact(folder: Path, name: str) -> dict[str, Any]:
    if not is_name(name):
        return {"name": name, "fault": "index.json may only name folders beside it"}
    try:
        found = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        found["columns"] = [
            {"unit": None, "digits": None, "title": column["key"], **column}
            for column in found.get("columns") or []
        ]
        rows = found.get("rows") or []
        found["cells"] = [[_cell(row.get(c["key"]), c) for c in found["columns"]] for row in rows]
        found["numeric"] = [
            all(isinstance(row.get(c["key"]), (int, float, type(None))) for row in rows)
            for c in found["columns"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"name": name, "fault": f"artifact.json cannot be read: {error}"}
    absent = ("paper", "question", "scale", "label", "command", "commit", "machine", "written")
    pictures = [folder / f"{name}.{suffix}" for suffix in ("svg", "png")]
    picture = next((_data_uri(path) for path in pictures if path.is_file()), None)
    return {
        **dict.fromkeys(absent),
        "title": name,
        "kind": "table",
        "notes": [],
        **found,
        "name": name,
        "picture": picture if found.get("kind") == "figure" else None,
        "fault": None,
    }


def _cell(value: Any, column: dict[str, Any]) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return fixed(value, column["digits"] if column["digits"] is not None else 2)
    return str(value)


def _data_uri(path: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --- filters ------------------------------------------------------------------------------------


def fixed(value: Any, digits: int, missing: str = DASH) -> str:
    """A number with so many digits after the point, a minus sign as printed, a dash for none."""
    if number(value) is None:
        return missing
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def percent(value: Any, digits: int, missing: str = DASH) -> str:
    """A share as a percentage."""
    return missing if number(value) is None else fixed(100 * value, digits)

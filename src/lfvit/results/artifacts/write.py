"""Artifacts as files: JSON, Markdown, CSV, and pictures of figures."""

import datetime
import json
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pandas as pd

from lfvit.results.artifacts import figures, probes
from lfvit.results.artifacts.settings import Artifact, Scale
from lfvit.results.artifacts.tables import Results, Table
from lfvit.results.artifacts.throughput import make_timed_table
from lfvit.runs.provenance import environment
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, to_markdown


def make_artifact(artifact: Artifact, results: Results, folder: Path) -> dict[str, Any]:
    """Make an artifact and write it, see `write_artifact`."""
    if artifact.draw is None:
        table = make_timed_table(artifact, results)
    else:
        module = figures if hasattr(figures, artifact.draw) else probes
        table = getattr(module, artifact.draw)(artifact, results)
    table.notes = [*artifact.notes, *table.notes, *_notes(artifact, results)]
    return write_artifact(artifact, table, folder, results.scale)


def _notes(artifact: Artifact, results: Results) -> list[str]:
    """What the scale and missing runs mean for an artifact."""
    scale, runs = results.scale, artifact.runs
    notes = [f"Run failed: {run}, {results.failed[run]}." for run in runs if run in results.failed]
    out = results.left_out
    notes += [f"Left out at this scale: {run}, {out[run]}." for run in runs if run in out]
    notes += [f"{run}: {results.starts[run]}." for run in runs if run in results.starts]
    notes += [text for pattern, text in scale.remarks.items() if matching(runs, pattern)]
    if scale.note and artifact.paper:
        notes.append(scale.note)
    if artifact.published and not scale.comparable:
        notes.append("Not comparable with the published figures, so no differences are given.")
    seeds = ", ".join(map(str, scale.seeds))
    several = (
        f"Means over seeds {seeds}, ± the sample standard deviation. Pictures of images, diagnoses "
        "and throughput: the first seed."
    )
    return [*notes, several if len(scale.seeds) > 1 else f"One seed: {seeds}."]


def write_artifact(artifact: Artifact, table: Table, folder: Path, scale: Scale) -> dict[str, Any]:
    """Write NAME.md, NAME.csv, pictures and, last, artifact.json into a folder.

    What was timed goes into benchmark.json, as benchmark.py writes it.

    Args:
        folder: of this artifact.

    Returns:
        The contents of artifact.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (f"{artifact.name}.*", "benchmark.json"):
        for old in folder.glob(pattern):
            old.unlink()  # a figure that can no longer be drawn should not stay
    if table.plot is not None:
        table.plot([folder / f"{artifact.name}.{kind}" for kind in ("png", "svg")])
    origin = environment()
    if table.timings:
        write_json(folder / "benchmark.json", {"environment": origin, "rows": table.timings})
    content = {
        "name": artifact.name,
        "title": artifact.title,
        "question": artifact.question,
        "paper": artifact.paper,
        "kind": "table" if artifact.draw is None else "figure",
        "scale": scale.name,
        "label": scale.label,
        "columns": table.columns,
        "rows": table.rows,
        "notes": table.notes,
        **{key: origin[key] for key in ("command", "commit", "machine")},
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    keys = [entry["key"] for entry in table.columns]
    pd.DataFrame(table.rows, columns=keys).to_csv(folder / f"{artifact.name}.csv", index=False)
    (folder / f"{artifact.name}.md").write_text(to_page(content))
    write_json(folder / "artifact.json", content)
    return content


def to_page(content: dict[str, Any]) -> str:
    """The contents of artifact.json as a page of Markdown."""
    parts = [f"# {content['title']}", content["question"]]
    if content["paper"]:
        parts[1] += f" ({content['paper']})"
    parts.append(f"**{content['label']}**")
    if content["kind"] == "figure":
        parts.append(f"![{content['title']}]({content['name']}.png)")
    titles, formats = {}, {}
    for entry in content["columns"]:
        key, unit, digits = entry["key"], entry["unit"], entry["digits"]
        shown = unit and unit not in entry["title"]
        titles[key] = entry["title"] + (f" ({unit})" if shown else "")
        if unit or digits:
            formats[key] = f"{'+' if key.endswith('_difference') else ''}.{digits}f"
    parts.append(to_markdown(content["rows"], formats, titles))
    if content["notes"]:
        parts.append("\n".join(f"- {note}" for note in content["notes"]))
    parts.append(f"{code(content['command'])}, commit {content['commit']}, {content['machine']}.")
    return "\n\n".join(parts) + "\n"


def write_index(output: Path, names: Sequence[str]) -> None:
    """artifacts/index.json and README.md, of all artifacts there are, in the order of the names."""
    paths = [output / "artifacts" / name / "artifact.json" for name in names]
    made = [json.loads(path.read_text()) for path in paths if path.exists()]
    write_json(output / "artifacts" / "index.json", [entry["name"] for entry in made])
    lines = [
        f"- [{entry['name']}](artifacts/{entry['name']}/{entry['name']}.md): {entry['title']}"
        + (f" ({entry['paper']})" if entry["paper"] else "")
        for entry in made
    ]
    label = made[0]["label"] if made else ""
    (output / "README.md").write_text("\n\n".join(["# Artifacts", label, "\n".join(lines)]) + "\n")

"""Artifacts as files: JSON, Markdown, CSV, and pictures of figures."""

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfvit.results.artifacts.content import Content
from lfvit.results.artifacts.spec import Artifact
from lfvit.runs.provenance import environment
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import code, escape


def write_artifact(
    artifact: Artifact, content: Content, folder: Path, scale: Mapping[str, Any]
) -> dict[str, Any]:
    """Write NAME.md, NAME.csv, pictures and, last, artifact.json into a folder.

    What was timed for it goes into benchmark.json, as benchmark.py writes it.

    Args:
        folder: of this artifact.
        scale: name and label of the scale.

    Returns:
        The contents of artifact.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (f"{artifact.name}.*", "examples.png", "benchmark.json"):
        for old in folder.glob(pattern):
            old.unlink()  # a figure that can no longer be drawn should not stay
    pictures = [folder / f"{artifact.name}.{kind}" for kind in ("png", "svg")]
    if content.plot is not None:
        content.plot(pictures)
    about = environment()
    if content.timed:
        write_json(folder / "benchmark.json", {"environment": about, "rows": content.timed})
    told = {
        "name": artifact.name,
        "title": artifact.title,
        "question": artifact.question,
        "paper": artifact.paper,
        "kind": artifact.kind,
        "scale": scale["name"],
        "label": scale["label"],
        "columns": content.columns,
        "rows": content.rows,
        "notes": content.notes,
        "command": about["command"],
        "commit": about["commit"],
        "machine": about["machine"],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    keys = [entry["key"] for entry in content.columns]
    with (folder / f"{artifact.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(content.rows)
    (folder / f"{artifact.name}.md").write_text(markdown(told))
    write_json(folder / "artifact.json", told)
    return told


def markdown(told: Mapping[str, Any]) -> str:
    """The contents of artifact.json as a page of its own."""
    parts = [f"# {told['title']}", told["question"]]
    if told["paper"]:
        parts[1] += f" ({told['paper']})"
    parts.append(f"**{told['label']}**")
    if told["kind"] == "figure":
        parts.append(f"![{told['title']}]({told['name']}.png)")
    parts.append(_table(told["columns"], told["rows"]))
    if told["notes"]:
        parts.append("\n".join(f"- {note}" for note in told["notes"]))
    parts.append(f"{code(told['command'])}, commit {told['commit']}, {told['machine']}.")
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    titles, marks = [], []
    for entry in columns:
        unit = (
            f" ({entry['unit']})" if entry["unit"] and entry["unit"] not in entry["title"] else ""
        )
        titles.append(f"{entry['title']}{unit}")
        numbers = [row[entry["key"]] for row in rows if row[entry["key"]] is not None]
        words = any(isinstance(value, str) for value in numbers)
        marks.append("---" if words else "--:")
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(marks)}|"]
    for row in rows:
        cells = [escape(format_value(row[entry["key"]], entry)) for entry in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_value(value: Any, entry: Mapping[str, Any]) -> str:
    """A value as its column shows it: empty for None, differences with their sign."""
    if value is None:
        return ""
    if isinstance(value, float) and entry["digits"]:
        sign = "+" if entry["key"].endswith("_difference") else ""
        return f"{value:{sign}.{entry['digits']}f}"
    if isinstance(value, float) and entry["unit"]:
        return f"{value:.0f}"
    return str(value)


def write_index(told: Sequence[Mapping[str, Any]], output: Path) -> None:
    """artifacts/index.json with all names in order, and README.md, which links them."""
    folder = output / "artifacts"
    write_json(folder / "index.json", [entry["name"] for entry in told])
    lines = [
        f"- [{entry['name']}](artifacts/{entry['name']}/{entry['name']}.md): {entry['title']}"
        + (f" ({entry['paper']})" if entry["paper"] else "")
        for entry in told
    ]
    label = told[0]["label"] if told else ""
    (output / "README.md").write_text("\n\n".join(["# Artifacts", label, "\n".join(lines)]) + "\n")


def written(output: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The artifact.json of every named artifact that is there, in the order of the names."""
    paths = [output / "artifacts" / name / "artifact.json" for name in names]
    return [json.loads(path.read_text()) for path in paths if path.exists()]

"""artifact.json and the pages about it: one schema for what writes and what reads it."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.dataclasses import dataclass

from lfvit.runs.directory import is_name
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import Cells, cells_to_markdown, code, format_cells


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in the rows, and how they are shown."""

    key: str
    title: str
    unit: str | None = None
    digits: int = 0

    @property
    def heading(self) -> str:
        """The title with its unit."""
        shown = self.unit and self.unit not in self.title
        return f"{self.title} ({self.unit})" if shown else self.title

    @property
    def format(self) -> str:
        """Of numbers; labels such as alpha, without unit and digits, are shown as they are."""
        if not (self.unit or self.digits):
            return ""
        return f"{'+' if self.key.endswith('_difference') else ''}.{self.digits}f"


class ArtifactFile(BaseModel):
    """The contents of artifact.json. rows: values by the columns' keys, None where there is none.

    label: what figures of this scale prove. command, commit, machine: that made it.
    """

    name: str = ""
    title: str
    question: str = ""
    paper: str | None = None
    kind: str = "table"
    scale: str = ""
    label: str = ""
    columns: list[Column] = []
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    command: str | None = None
    commit: str | None = None
    machine: str | None = None
    written: str | None = None

    @property
    def measured(self) -> bool:
        """Whether it shows more than published figures."""
        return any(row.get("source", "measured") == "measured" for row in self.rows)

    @property
    def cells(self) -> Cells | None:
        """The table as text, the same in Markdown and on the report page."""
        if not (self.rows and self.columns):
            return None
        titles = {column.key: column.heading for column in self.columns}
        formats = {column.key: column.format for column in self.columns if column.format}
        return format_cells(self.rows, formats, titles)


def to_page(artifact: ArtifactFile) -> str:
    """The contents of artifact.json as a page of Markdown."""
    paper = f" ({artifact.paper})" if artifact.paper else ""
    parts = [f"# {artifact.title}", f"{artifact.question}{paper}", f"**{artifact.label}**"]
    if artifact.kind == "figure":
        parts.append(f"![{artifact.title}]({artifact.name}.png)")
    if artifact.cells:
        parts.append(cells_to_markdown(artifact.cells))
    if artifact.notes:
        parts.append("\n".join(f"- {note}" for note in artifact.notes))
    parts.append(f"{code(artifact.command)}, commit {artifact.commit}, {artifact.machine}.")
    return "\n\n".join(parts) + "\n"


def write_index(output: Path, names: Sequence[str]) -> None:
    """artifacts/index.json and README.md, of all artifacts there are, in the order of the names;
    those that only show published figures come last.
    """
    paths = [output / "artifacts" / name / "artifact.json" for name in names]
    made = [ArtifactFile(**json.loads(path.read_text("utf-8"))) for path in paths if path.exists()]
    made.sort(key=lambda artifact: not artifact.measured)
    write_json(output / "artifacts" / "index.json", [artifact.name for artifact in made])
    lines = [
        f"- [{artifact.name}](artifacts/{artifact.name}/{artifact.name}.md): {artifact.title}"
        + (f" ({artifact.paper})" if artifact.paper else "")
        for artifact in made
    ]
    label = made[0].label if made else ""
    (output / "README.md").write_text(
        "\n\n".join(["# Artifacts", label, "\n".join(lines)]) + "\n", "utf-8"
    )


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """The artifacts in index.json for the report page, with ``cells`` and ``picture``.

    One that cannot be read has the reason as its ``fault``.
    """
    try:
        names = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return [_read_artifact(folder / str(name), str(name)) for name in names]
    except (OSError, ValueError, TypeError) as error:
        return [{"name": "index.json", "fault": f"cannot be read: {error}"}]


def _read_artifact(folder: Path, name: str) -> dict[str, Any]:
    if not is_name(name):
        return {"name": name, "fault": "index.json may only name folders beside it"}
    try:
        content = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        artifact = ArtifactFile(**content)
    except (OSError, ValueError, TypeError, ValidationError) as error:
        return {"name": name, "fault": f"artifact.json cannot be read: {error}"}
    picture = None
    for suffix, kind in (("png", "png"), ("svg", "svg+xml")):
        path = folder / f"{name}.{suffix}"
        if artifact.kind == "figure" and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            picture = f"data:image/{kind};base64,{data}"  # SVG, where there are both
    known = {**artifact.model_dump(), "name": name, "cells": artifact.cells, "picture": picture}
    return {**known, "fault": None}

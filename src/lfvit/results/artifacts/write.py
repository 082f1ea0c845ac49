"""Artifacts as files: JSON, Markdown, CSV, and pictures of figures."""

import datetime
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import pandas as pd

from lfvit.results.artifacts import figures, probes
from lfvit.results.artifacts.files import ArtifactFile, to_page
from lfvit.results.artifacts.settings import NOT_TRAINED, Artifact, Scale
from lfvit.results.artifacts.tables import Results, Table, make_table
from lfvit.runs.provenance import environment
from lfvit.utils.atomic_io import write_json
from lfvit.utils.paths import program

OF_ONE_RUN = {"passes": figures.passes, "depth": probes.depth, "one_block": probes.one_block}
DRAWINGS = {
    "cost_curves": figures.cost_curves,
    "sweep": figures.sweep,
    "paired": figures.paired,
    "regions": probes.regions,
}
"""Ways to draw a figure; the first ones are of the first seed of one run."""


def make_artifact(artifact: Artifact, results: Results, folder: Path) -> dict[str, Any]:
    """Make an artifact and write it, see `write_artifact`."""
    if artifact.draw is None:
        table = make_table(artifact, results)
    elif artifact.draw in OF_ONE_RUN:
        runs = results.of(artifact.rows[0])
        draw = OF_ONE_RUN[artifact.draw]
        table = draw(artifact, results.scale, runs[0]) if runs else Table([], [])
    else:
        table = DRAWINGS[artifact.draw](artifact, results)
    table.notes = [*artifact.notes, *table.notes, *_notes(artifact, results)]
    return write_artifact(artifact, table, folder, results.scale)


def _notes(artifact: Artifact, results: Results) -> list[str]:
    """What the scale and missing runs mean for an artifact."""
    scale, runs = results.scale, artifact.runs
    notes = [f"Run failed: {run}, {results.failed[run]}." for run in runs if run in results.failed]
    for why in dict.fromkeys(results.left_out.values()):
        if out := [run for run in runs if results.left_out.get(run) == why]:
            notes.append(f"Left out at this scale: {', '.join(out)}: {why}.")
            if why == NOT_TRAINED:
                command = f"{program('reproduce')} scale={scale.name} artifacts={artifact.name}"
                notes.append(f"To train these as well: {command}")
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
    """Write NAME.md, NAME.csv, pictures and, last, artifact.json into the folder of an artifact.

    Returns:
        The contents of artifact.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{artifact.name}.*"):
        old.unlink()  # a figure that can no longer be drawn should not stay
    if table.plot is not None:
        table.plot([folder / f"{artifact.name}.{kind}" for kind in ("png", "svg")], scale.label)
    origin = environment()
    artifact_file = ArtifactFile(
        **artifact.model_dump(include={"name", "title", "question", "paper"}),
        kind="table" if table.plot is None else "figure",
        scale=scale.name,
        label=scale.label,
        columns=table.columns,
        rows=table.rows,
        notes=table.notes,
        **{key: origin[key] for key in ("command", "commit", "machine")},
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    keys = [column.key for column in table.columns]
    pd.DataFrame(table.rows, columns=keys).to_csv(folder / f"{artifact.name}.csv", index=False)
    (folder / f"{artifact.name}.md").write_text(to_page(artifact_file), "utf-8")
    content = artifact_file.model_dump()
    write_json(folder / "artifact.json", content)
    return content

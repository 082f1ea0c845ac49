"""python -m lfvit.results.artifacts: write docs/reproduce.md from conf/artifact."""

from collections.abc import Mapping

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lfvit.results.artifacts.spec import Artifact, read_artifacts
from lfvit.runs.provenance import PROJECT_ROOT

INTRO = """# What can be reproduced

`make reproduce` makes every table and figure below, `ARTIFACTS="table2 figure7"` those whose names
contain one of the words as a whole part. `SCALE` says on what:

{scales}

`make reproduce-plan` with the same settings prints what would run, and how long it would take on
this machine. Interrupted, `make reproduce` continues; a run that several artifacts need happens
once. `ARGS="jobs=3"` makes three runs at a time, each in a process of its own, which is how small
models fill a large GPU; `ARGS="reuse=[DIR]"` takes finished trainings of `train.py` below DIR where
their settings are the same.

Results are in `outputs/reproduce/SCALE/`: a page, a CSV and a JSON file for each artifact, PNG and
SVG for figures, `benchmark.json` where models were timed, a README that links them, and
`report.html`, which [shows everything](report.md). What is in an artifact is said in
[conf/artifact](../conf/artifact), the runs in [conf/runs](../conf/runs), the scales in
[conf/scale](../conf/scale).

Methods of other people that are not in this project appear with their published figures, as
"published only". Differences from published figures are given at `SCALE=imagenet` alone.

*Written by `python -m lfvit.results.artifacts` from conf/artifact.*
"""
OPEN = "What the papers leave open"
SCALES = {"smoke": "", "needle": ""} | dict.fromkeys(
    ("imagenette_cpu", "imagenette", "imagenet"), " DATA=DIR"
)


def catalogue(artifacts: Mapping[str, Artifact], scales: Mapping[str, DictConfig]) -> str:
    """The page: every artifact with its source in the papers and its command."""
    lines = [f"- `SCALE={name}{SCALES[name]}`: {scale.label}" for name, scale in scales.items()]
    parts = [INTRO.format(scales="\n".join(lines)).strip()]
    groups: dict[str, list[str]] = {}
    for artifact in artifacts.values():
        title, _, where = (artifact.paper or "").partition(", ")
        title = title or (OPEN if artifact.name.startswith("question_") else "One beside the other")
        groups.setdefault(title, []).append(
            f"| {where or artifact.kind} | {artifact.title}. {artifact.question} | "
            f"{len(artifact.runs)} | `make reproduce ARTIFACTS={artifact.name}` |"
        )
    for title, rows in groups.items():
        head = ["| | what it shows | runs | command |", "|---|---|--:|---|"]
        parts.append(f"## {title}\n\n" + "\n".join([*head, *rows]))
    return "\n\n".join(parts) + "\n"


def current() -> str:
    """The page as conf/ has it now."""
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        scales = {name: compose("reproduce", [f"scale={name}"]).scale for name in SCALES}
        cfg = compose("reproduce")
    return catalogue(read_artifacts(cfg.artifact, map(str, cfg.runs)), scales)


if __name__ == "__main__":
    (PROJECT_ROOT / "docs" / "reproduce.md").write_text(current())

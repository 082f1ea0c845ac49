"""python -m lfvit.results.artifacts: write docs/reproduce.md from conf/artifact."""

from lfvit.results.artifacts.settings import Scale, read_artifacts
from lfvit.runs.overrides import compose_config
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.utils.validation import plain, validate

INTRO = """# What can be reproduced

`make reproduce` makes every table and figure below, `ARTIFACTS="table2 figure7"` those whose names
contain one of the words as a whole part. `SCALE` says on what:

{scales}

`make reproduce-plan` with the same settings prints what would run, and how long it would take on
this machine. Interrupted, `make reproduce` continues; a run that several artifacts need happens
once. `ARGS="jobs=3"` trains three models at a time, each by a `train.py` of its own, which is how
small models fill a large GPU; `ARGS="reuse=[DIR]"` uses finished trainings of `train.py` below DIR
where their settings are the same.

Results are in `outputs/reproduce/SCALE/`: a page, a CSV and a JSON file for each artifact, PNG and
SVG for figures, `benchmark.json` where models were timed, a README that links them, and
`report.html`, which [shows everything](report.md). Artifacts are defined in
[conf/artifact](../conf/artifact), the runs in [conf/runs](../conf/runs), the scales in
[conf/scale](../conf/scale).

Methods of other people that are not in this project appear with their published figures, as
"published only". Differences from published figures are given at `SCALE=imagenet` alone.

*Written by `python -m lfvit.results.artifacts` from conf/artifact.*
"""
OPEN = "What the papers leave open"
SCALES = ("smoke", "needle", "imagenette_cpu", "imagenette", "imagenet")


def to_page() -> str:
    """Every artifact of conf/artifact with its source in the papers and its command."""
    scales = [
        validate(Scale, plain(compose_config("reproduce", [f"scale={name}"]).scale), "scale")
        for name in SCALES
    ]
    lines = [f"- `SCALE={s.name}{'' if s.generated else ' DATA=DIR'}`: {s.label}" for s in scales]
    parts = [INTRO.format(scales="\n".join(lines)).strip()]
    cfg = compose_config("reproduce")
    groups: dict[str, list[str]] = {}
    for artifact in read_artifacts(plain(cfg.artifact), plain(cfg.runs)).values():
        title, _, where = (artifact.paper or "").partition(", ")
        title = title or (OPEN if artifact.name.startswith("question_") else "One beside the other")
        where = where or ("figure" if artifact.draw else "table")
        groups.setdefault(title, ["| | what it shows | runs | command |", "|---|---|--:|---|"])
        groups[title].append(
            f"| {where} | {artifact.title}. {artifact.question} | {len(artifact.runs)} | "
            f"`make reproduce ARTIFACTS={artifact.name}` |"
        )
    parts += [f"## {title}\n\n" + "\n".join(lines) for title, lines in groups.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (PROJECT_ROOT / "docs" / "reproduce.md").write_text(to_page())

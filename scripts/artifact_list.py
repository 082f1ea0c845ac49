"""python scripts/artifact_list.py: write the lists of docs/reproduce.md from conf."""

from lfvit.results.artifacts.settings import Scale, read_artifacts
from lfvit.runs.configs import compose_config
from lfvit.utils.paths import CHECKOUT
from lfvit.utils.validation import plain, validate

PAGE = CHECKOUT / "docs" / "reproduce.md"
MARK = "*From here on written by `python scripts/artifact_list.py`.*"
SCALES = ("smoke", "needle", "finetune", "finetune_cpu", "imagenette_cpu", "imagenette", "imagenet")


def updated_page() -> str:
    """docs/reproduce.md with every scale, and every artifact with its source and command."""
    parts = [PAGE.read_text("utf-8").partition(MARK)[0] + MARK, "## Scales"]
    scales = [compose_config("reproduce", [f"scale={name}"]).scale for name in SCALES]
    scales = [validate(Scale, plain(scale), "scale") for scale in scales]
    lines = [f"- `SCALE={s.name}{'' if s.generated else ' DATA=DIR'}`: {s.label}" for s in scales]
    parts.append("\n".join(lines))
    cfg = compose_config("reproduce")
    groups: dict[str, list[str]] = {}
    for artifact in read_artifacts(plain(cfg.artifact), plain(cfg.runs)).values():
        title, _, where = (artifact.paper or "").partition(", ")
        open_question = artifact.name.startswith("question_")
        title = title or ("What the papers leave open" if open_question else "All methods")
        where = where or ("figure" if artifact.draw else "table")
        groups.setdefault(title, ["| | what it shows | runs | command |", "|---|---|--:|---|"])
        groups[title].append(
            f"| {where} | {artifact.title}. {artifact.question} | {len(artifact.runs)} | "
            f"`make reproduce ARTIFACTS={artifact.name}` |"
        )
    parts += [f"## {title}\n\n" + "\n".join(lines) for title, lines in groups.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(updated_page(), "utf-8")

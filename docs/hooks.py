"""Pages of the site that are made from other files of the project while it is built."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    guide = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=guide))
    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files that are not part of the site become their names."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)


def configuration() -> str:
    """Every file of conf/, as it is: the comments in them are the reference."""
    conf = ROOT / "conf"
    parts = [
        "# Configuration",
        "Every decision is a key of a file in `conf/`. `python train.py --help` lists the groups, "
        "`python train.py --cfg job` prints what a command line composes. A group is chosen with "
        "`group=option`, a key set with `key=value`, a list swept with `-m key=a,b,c`.",
        "## Commands",
        *(_file(path, f"{path.stem}.py") for path in sorted(conf.glob("*.yaml"))),
    ]
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir()):
        options = sorted(folder.glob("*.yaml"))
        if options:
            group = folder.relative_to(conf)
            parts.append(f"## {group}")
            parts += [_file(path, f"{group}={path.stem}") for path in options]
    return "\n\n".join(parts) + "\n"


def _file(path: Path, title: str) -> str:
    return f"### {title}\n\n```yaml\n{path.read_text().strip()}\n```"

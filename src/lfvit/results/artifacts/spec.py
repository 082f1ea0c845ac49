"""What an artifact is, read from conf/artifact and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lfvit import results
from lfvit.errors import ConfigError
from lfvit.measure.thresholds import default_thresholds
from lfvit.results.artifacts.measures import LABELS, MEASURES
from lfvit.results.old.comparisons import WAYS
from lfvit.results.old.diagnosis import PANELS
from lfvit.utils.validation import check_choice, check_names, check_whole, plain

KINDS = ("table", "figure")
DRAW = (
    "operating_points",
    "cost_curves",
    "sweep",
    "passes",
    "regions",
    "depth",
    "one_block",
    "by_object_size",
    "total_cost",
    "paired",
)
"""Ways to draw a figure, see `lfvit.results.artifacts.figures.BUILDERS`."""


@dataclass(frozen=True)
class Artifact:
    """One table or figure.

    name, title, question: in words. paper: "LF-ViT, Table 2", or None. kind: "table" or "figure".
    rows: each a mapping of labels with ``run``, the name of a run, and optionally ``eta`` (the
    operating point at this threshold) or ``at`` (first, both, calibrated; of "paired" any of
    `lfvit.results.old.comparisons.WAYS`). measures: columns that
    are computed, see `MEASURES`. published: where the published rows are in papers.yaml, such as
    "lf_vit.table2_vs_backbone"; a figure may name several. draw: how a figure is drawn, see `DRAW`.
    x, left, right: of "sweep". panels, noise: of "depth". removed: of "one_block". examples:
    pictures of images. yardsticks: rows of what the others are compared with: one-pass models of
    "total_cost", any models of "paired". notes: what a reader
    must know.
    """

    name: str
    title: str
    question: str
    kind: str
    rows: list[dict[str, Any]]
    paper: str | None = None
    measures: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    draw: str | None = None
    x: str | None = None
    left: list[str] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    panels: list[str] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    removed: float = 0.3
    examples: int = 0
    yardsticks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        """Names of the runs it needs, each once."""
        return list(dict.fromkeys(row["run"] for row in [*self.rows, *self.yardsticks]))

    def published_rows(self) -> list[dict[str, Any]]:
        """The published rows of all its sources, in order."""
        return [row for source in self.published for row in published(source)]


def read_artifacts(cfg: Mapping[str, Any], runs: Iterable[str]) -> dict[str, Artifact]:
    """All artifacts of a config, in its order.

    Args:
        cfg: name -> settings of `Artifact`.
        runs: names of the runs there are.

    Raises:
        ConfigError: an unknown setting, run, measure, drawing or published source.
    """
    names = set(runs)
    return {name: _artifact(str(name), plain(cfg[name]), names) for name in cfg}


def _artifact(name: str, settings: dict[str, Any], runs: set[str]) -> Artifact:
    where = f"artifact.{name}"
    known = [option.name for option in fields(Artifact) if option.name != "name"]
    check_names(where, settings, known)
    for needed in ("title", "question", "kind", "rows"):
        if needed not in settings:
            raise ConfigError(f"{where} needs {needed}")
    if isinstance(settings.get("published"), str):
        settings["published"] = [settings["published"]]
    made = Artifact(name, **settings)
    check_choice(f"{where}.kind", made.kind, KINDS)
    if made.kind == "figure":
        check_choice(f"{where}.draw", made.draw, DRAW)
        for name, valid in (("left", MEASURES), ("right", MEASURES), ("panels", PANELS)):
            for value in getattr(made, name):
                check_choice(f"{where}.{name}", value, valid)
        if made.draw == "sweep":
            check_choice(f"{where}.x", made.x, LABELS)
    check_whole(f"{where}.examples", made.examples, int(made.draw == "regions"))
    for measure in made.measures:
        check_choice(f"{where}.measures", measure, MEASURES)
    ways = WAYS if made.draw == "paired" else ("first", "both", "calibrated")
    for row in [*made.rows, *made.yardsticks]:
        check_names(f"{where}.rows", row, ["run", "at", *LABELS])
        check_choice(f"{where}.rows.run", row.get("run"), sorted(runs))
        check_choice(f"{where}.rows.at", row.get("at", "both"), ways)
        if row.get("eta", 0.0) not in default_thresholds():
            raise ConfigError(f"{where}.rows.eta={row['eta']} must be one of 0.00, 0.01 ... 1.01")
    for source in made.published:
        published(source)
    return made


def choose(artifacts: Mapping[str, Artifact], words: str | Iterable[str] | None) -> list[Artifact]:
    """The artifacts with these names, or with names of which a word is a whole part.

    "table2" is in lf_vit_table2 and cf_vit_table2, "cf_vit" in all of CF-ViT; nothing is all.

    Raises:
        ConfigError: a word that finds none, with the close ones.
    """
    if isinstance(words, str):
        words = words.replace(",", " ").split()
    words = list(words or ())
    if not words:
        return list(artifacts.values())
    found: set[str] = set()
    for word in words:
        exact = {word} & set(artifacts)
        hits = exact or {name for name in artifacts if f"_{word}_" in f"_{name}_"}
        if not hits:
            parts = {part for name in artifacts for part in (name, name.rpartition("_")[2])}
            close = get_close_matches(word, sorted(parts), n=3) or sorted(artifacts)
            raise ConfigError(
                f"artifacts={word!r} is unknown; "
                f"{'close' if len(close) < len(artifacts) else 'valid'}: {', '.join(close)}"
            )
        found |= hits
    return [artifact for name, artifact in artifacts.items() if name in found]


def published(source: str) -> list[dict[str, Any]]:
    """Rows of papers.yaml, such as those of "lf_vit.table2_vs_backbone".

    Raises:
        ConfigError: there are none of that name.
    """
    paper, _, table = source.partition(".")
    rows = _papers().get(paper, {}).get(table)
    if not isinstance(rows, list):
        tables = [
            f"{name}.{key}"
            for name, content in _papers().items()
            for key, value in content.items()
            if isinstance(value, list)
        ]
        raise ConfigError(f"published={source!r} is unknown; valid: {', '.join(tables)}")
    return [dict(row) for row in rows]


@cache
def _papers() -> dict[str, Any]:
    path = Path(results.__file__).with_name("papers.yaml")
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    content: Any = OmegaConf.to_container(loaded)
    return dict(content)

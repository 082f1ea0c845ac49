"""What conf/artifact, conf/runs and conf/scale may say, checked without PyTorch."""
# ruff: noqa: RUF012  (pydantic copies the defaults)

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import filter as matching
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from lfvit.errors import ConfigError
from lfvit.results.papers import published_rows
from lfvit.utils.validation import Settings, check_choice, validate

LABELS = {
    "model": "model",
    "way": "run",
    "method": "method",
    "name": "setting",
    "resolution": "resolution",
    "tokens": "tokens",
    "m": "m",
    "eta": "η",
    "alpha": "α",  # noqa: RUF001
    "beta": "β",
    "selector": "selector",
    "image": "image",
    "loss": "loss",
    "reuse": "reuse",
    "to": "added to",
}
"""Labels of rows, in the order of their columns, and the titles of these."""

Drawing = Literal["cost_curves", "sweep", "passes", "regions", "depth", "one_block", "paired"]
Measure = Literal[
    "top1", "gmacs", "gmacs_std", "first", "second", "exits", "threshold", "covered", "throughput"
]
NOT_TRAINED = "not among the few trainings that are made where no artifact is asked for"
Count = Annotated[int, Field(ge=1)]


class Row(Settings):
    """One row of an artifact; what else it says are labels, see `LABELS`.

    Attributes:
        run: a name in conf/runs.
        at: the operating point of this rule, such as "pass 1" or "max_loss=0.5"; in paired
            comparisons see `lfvit.results.paired.WAYS`. Without it and eta: the last pass.
        eta: the operating point at this threshold; also a label.
    """

    model_config = ConfigDict(extra="allow")

    run: str
    at: str | None = None
    eta: Annotated[float, Field(ge=0, le=1.01, multiple_of=0.01)] | None = None

    @model_validator(mode="after")
    def _known_labels(self) -> "Row":
        for name in self.labels:
            check_choice("label", name, LABELS)
        return self

    @property
    def labels(self) -> dict[str, Any]:
        """The published row with the same labels stands beside this one."""
        return self.model_dump(exclude={"run", "at"}, exclude_none=True)

    @property
    def title(self) -> str:
        return str(self.labels.get("model", self.run))


class Artifact(Settings):
    """One table or figure.

    Attributes:
        name: of its folder. title, question, notes: sentences for the reader.
        paper: such as "LF-ViT, Table 2".
        draw: how a figure is drawn; None for a table.
        rows, yardsticks: models, and the models that they are compared with.
        measures: columns that are computed.
        published: tables of papers.yaml, such as "lf_vit.table2_vs_backbone".
        x, y: of "sweep": a label, and the measures of its panels.
        panels, noise: of "depth". removed: of "one_block". examples: images of "regions".
    """

    name: str
    title: str
    question: str
    rows: list[Row]
    paper: str | None = None
    draw: Drawing | None = None
    measures: list[Measure] = []
    published: list[str] = []
    yardsticks: list[Row] = []
    x: Literal["eta", "m", "alpha", "beta"] = "eta"
    y: list[Measure] = []
    panels: list[str] = []
    noise: list[float] = []
    removed: float = 0.3
    examples: Count = 6
    notes: list[str] = []

    @property
    def runs(self) -> list[str]:
        """Names of the runs it needs, yardsticks first, each once."""
        return list(dict.fromkeys(row.run for row in [*self.yardsticks, *self.rows]))

    def published_rows(self) -> list[dict[str, Any]]:
        """The published rows of all its sources, in order."""
        return [row for source in self.published for row in published_rows(source)]


class Run(Settings):
    """One entry of conf/runs.

    Attributes:
        train: parts of the scale and overrides of train.py, in order.
        start: the run whose weights training starts from.
        teacher: the run that teaches (schedule.teacher).
        evaluate: instead of train: overrides of evaluate.py for the weights of `start`.
    """

    train: list[str] = []
    start: str | None = None
    teacher: str | None = None
    evaluate: list[str] = []

    @model_validator(mode="after")
    def _trains_or_evaluates(self) -> "Run":
        if bool(self.train) == bool(self.evaluate and self.start):
            raise ValueError("a run needs train, or start and evaluate")
        return self


class Scale(Settings):
    """One option of conf/scale; conf/scale/base.yaml says what each setting means."""

    name: str
    label: str
    note: str | None
    comparable: bool
    generated: bool
    seeds: list[int] = Field(min_length=1)
    artifacts: list[str] | None
    trainings: list[str] | None
    probe_images: Count
    speed_images: Count
    speed_repeats: Count
    speed_precision: Literal["fp32", "bf16"]
    speed_compile: bool
    train_images: Count | None
    num_classes: Count | None
    overrides: list[str]
    parts: dict[str, list[str]]
    starts: dict[str, str]
    leave_out: dict[str, str]
    remarks: dict[str, str]

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    def check_names(self, runs: Iterable[str], artifacts: Iterable[str]) -> None:
        """Refuse names of runs, artifacts and parts that there are not.

        Raises:
            ConfigError: with the closest name.
        """
        for name in self.artifacts or []:
            check_choice("scale.artifacts", name, artifacts)
        for name in self.trainings or []:
            check_choice("scale.trainings", name, runs)
        for part, run in self.starts.items():
            check_choice("scale.starts", part, self.parts)
            check_choice(f"scale.starts.{part}", run, runs)
        for pattern in [*self.leave_out, *self.remarks]:
            if not matching(runs, pattern):
                check_choice("run in scale.leave_out or scale.remarks", pattern, runs)

    def left_out(self, runs: Mapping[str, Run], made: Iterable[str] = ()) -> dict[str, str]:
        """Run -> why this scale leaves it out, unless it is made already."""
        out = {run: why for p, why in self.leave_out.items() for run in matching(runs, p)}
        if self.trainings is not None:
            there = {*self.trainings, *made}
            for name, run in runs.items():
                if not {name, *([run.start] if run.evaluate else [])} & there:
                    out.setdefault(name, NOT_TRAINED)
        return out


def read_artifacts(cfg: Mapping[str, Any], runs: Iterable[str]) -> dict[str, Artifact]:
    """All artifacts of a plain config, in its order.

    Args:
        cfg: name -> settings of `Artifact`.
        runs: names of the runs there are.

    Raises:
        ConfigError: an unknown setting, run, measure, drawing or published source.
    """
    artifacts = {}
    for name, settings in cfg.items():
        artifact = validate(Artifact, {"name": name, **settings}, f"artifact.{name}")
        for run in artifact.runs:
            check_choice(f"artifact.{name}.rows.run", run, runs)
        artifact.published_rows()
        artifacts[name] = artifact
    return artifacts


def choose(artifacts: Mapping[str, Artifact], words: str | Iterable[str] | None) -> list[Artifact]:
    """The artifacts with these names, or with names of which a word is a whole part.

    "table2" is in lf_vit_table2 and cf_vit_table2, "cf_vit" in all of CF-ViT; nothing is all.

    Raises:
        ConfigError: a word that matches none, with the closest ones.
    """
    if isinstance(words, str):
        words = words.replace(",", " ").split()
    chosen: set[str] = set()
    for word in words or ():
        hits = {word} & set(artifacts) or {n for n in artifacts if f"_{word}_" in f"_{n}_"}
        if not hits:
            parts = {part for name in artifacts for part in (name, name.rpartition("_")[2])}
            close = get_close_matches(word, sorted(parts), n=3) or sorted(artifacts)
            raise ConfigError(f"artifacts={word!r} is unknown; close: {', '.join(close)}")
        chosen |= hits
    return [artifact for name, artifact in artifacts.items() if not chosen or name in chosen]

"""Files of run folders, read with care: what is damaged or odd is refused with a reason."""

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_DEPTH = 40  # levels of nesting; the files that commands write have fewer than ten
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]


class RunFile(BaseModel):
    """The part of a file that the results rely on; whatever else the file holds is kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Config(RunFile):
    """config.yaml of Hydra."""

    seed: Count | None = None
    init_from: str | None = None
    reducer: dict[str, Any] | None = None


class Status(RunFile):
    """run.json of a training, job.json of a sweep."""

    status: str | None = None
    error: str | None = None
    evaluation: str | None = None


class Metrics(RunFile):
    """metrics.json of train.py."""

    machine: str
    epochs: Count
    train_images: Count
    parameters: Count
    train_seconds: Annotated[float, Field(ge=0, le=1e12)]


class Environment(RunFile):
    """environment.json, and the same within other files."""

    command: str | None = None
    commit: str | None = None
    machine: str | None = None
    threads: Count | None = None
    packages: dict[str, str | None] = {}


class Speed(RunFile):
    """A row of benchmark.json. settings: of the model, as JSON."""

    model: str
    batch_size: Annotated[int, Field(gt=0, le=2**53)]
    images_per_second: Positive
    gmacs: Positive
    settings: str
    exit_fraction: Share | None = None
    exits: str | None = None
    task: str = "inference"
    precision: str = "fp32"
    compiled: bool = False


class Benchmark(RunFile):
    """benchmark.json of benchmark.py."""

    rows: list[Speed]
    environment: Environment = Environment()


SCHEMAS: dict[str, type[RunFile]] = {
    "config.yaml": Config,
    "run.json": Status,
    "job.json": Status,
    "metrics.json": Metrics,
    "environment.json": Environment,
    "benchmark.json": Benchmark,
}


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a JSON or YAML file as plain JSON values, checked by `SCHEMAS`.

    Raises:
        OSError, ValueError: it cannot be read or holds something else, with the reason.
    """
    text = path.read_text(encoding="utf-8")
    try:
        # YAML aliases: the project writes none, and a few lines of them may stand for gigabytes
        events = yaml.parse(text) if path.suffix == ".yaml" and "*" in text else ()
        if any(isinstance(event, yaml.AliasEvent) for event in events):
            raise ValueError("an alias")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if _depth(content) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        # dates and keys become text; half of a surrogate pair cannot be encoded
        plain = json.dumps(content, ensure_ascii=False, default=str)
        plain.encode()
    except (RecursionError, yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    content = json.loads(plain)
    if "\\u0000" in plain or not isinstance(content, dict):
        raise ValueError("not a mapping of plain values")
    try:
        if path.name in SCHEMAS:
            SCHEMAS[path.name](**content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise ValueError(f"not as this project writes it ({reason})") from error
    return content


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, children), default=0) if isinstance(value, dict | list) else 0

"""Files of run folders, checked when they are read: a damaged one is refused with the reason."""

import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e12)]


class RunFile(BaseModel):
    """What the results rely on; whatever else a file holds is kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Config(RunFile):
    """config.yaml of Hydra."""

    seed: Count | None = None
    init_from: str | None = None
    method: dict[str, Any] | None = None
    reducer: dict[str, Any] | None = None
    data: dict[str, Any] | None = None


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
    """environment.json of train.py."""

    command: str
    threads: Count
    packages: dict[str, str | None]


class Speed(RunFile):
    """A row of benchmark.json."""

    runtime: str = "torch"
    task: str = "inference"
    settings: Json[dict[str, Any]]
    precision: str = "fp32"
    compiled: bool = False
    batch_size: Annotated[int, Field(gt=0, le=2**53)]
    images_per_second: Positive
    gmacs: Positive
    exit_fraction: Annotated[float, Field(ge=0, le=1)] | None = None


class Benchmark(RunFile):
    """benchmark.json of benchmark.py."""

    rows: list[Speed]
    environment: dict[str, Any] | None = None


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
        ValueError: it cannot be read or holds something else, with the reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        plain = json.dumps(content, ensure_ascii=False, default=str)  # dates, keys
        plain.encode()  # no half of a surrogate pair
        content = json.loads(plain)
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
        if path.name in SCHEMAS:
            SCHEMAS[path.name](**content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise ValueError(f"not as this project writes it ({reason})") from error
    except Exception as error:  # PyYAML raises many kinds for damaged files
        raise ValueError(str(error) or type(error).__name__) from error
    return content

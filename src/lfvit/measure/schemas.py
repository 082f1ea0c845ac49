"""Schemas of result files, shared by the command that writes a file and everything that reads it.

This module imports no PyTorch.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lfvit.data.settings import Preprocessing
from lfvit.errors import DataError
from lfvit.measure.settings import EvaluationSettings

FORMAT: Final = 2
"""Version of the files. A reader refuses any other."""

Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Gmacs = Annotated[float, Field(gt=0)]


def _check_name(settings: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(settings.get("name"), str):
        raise ValueError("has no name")
    return settings


Named = Annotated[dict[str, Any], AfterValidator(_check_name)]
"""Settings of a method or a reducer, with its name."""


class Schema(BaseModel):
    """A part of a result file: names and types are exact, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PassResult(Schema):
    """One pass on every image.

    gmacs: of a forward through this pass and all before it. gmacs_std: where it depends on the
    image, the standard deviation over the images that gmacs is the mean of.
    """

    top1: Percent
    top5: Percent
    gmacs: Gmacs
    gmacs_std: Annotated[float, Field(ge=0)] | None = None


class CurvePoint(Schema):
    """Early exit at one threshold. exit_fraction: images that exit before the last pass."""

    threshold: float
    top1: Percent
    exit_fraction: Share
    gmacs: Gmacs


class OperatingPoint(Schema):
    """One way to run the model: a row of `lfvit.measure.operating_points.operating_points`.

    rule: "pass 1", "pass 2", "threshold" (the configured eta), or a rule that chooses eta on the
        calibration images, such as "max_loss=0.5" or "consistency<=0.01".
    threshold, top1, exit_fraction, gmacs: None where it found none; reason says why.
    thresholds: where each exit has its own; threshold is None then.
    consistency: share of the images whose prediction is not the last pass's.
    images, chosen_on: numbers of images measured on and chosen on.
    reference_top1: of the last pass on the same images.
    """

    rule: str
    threshold: float | None
    top1: Percent | None
    exit_fraction: Share | None
    gmacs: Gmacs | None
    consistency: Share | None
    images: Count
    chosen_on: Count
    reason: str | None
    reference_top1: Percent
    thresholds: list[float] | None = None


class CalibrationError(Schema):
    """ece: expected calibration error in percentage points. nll: in nats."""

    ece: float
    nll: float


class Temperature(Schema):
    """Temperature scaling of the first pass, measured on the images it was not fitted on.

    temperature: None where no temperature is best; after is then None too.
    """

    temperature: float | None
    chosen_on: Count
    images: Count
    before: CalibrationError
    after: CalibrationError | None


class Coverage(Schema):
    """covered: mean share of the object's box inside the region. whole: images with all of it."""

    covered: Share
    whole: Share


class Localisation(Schema):
    """Where the second pass looks, beside windows placed at random."""

    region: Coverage
    random_windows: Coverage


class Evaluation(Schema):
    """The contents of evaluate.json.

    preprocessing: of the images; None in older files. data: name of the data set, of its folder if
    it is one. images: that were evaluated. skipped_images: that could not be read. total_images: of
    which these are a part. unseen: whether it is known that training never saw them.
    curve, temperature: empty and None for a model with one pass. localisation: None without boxes.
    settings: rules and the split of the images. environment: command, commit, machine, versions.
    """

    format: Literal[2] = FORMAT
    checkpoint: str
    method: Named
    backbone: dict[str, Any] | str
    reducer: Named
    image_size: int
    preprocessing: Preprocessing | None = None
    seed: int
    data: str
    precision: str
    images: Annotated[int, Field(ge=1)]
    skipped_images: Count
    total_images: Count | None = None
    unseen: bool = False
    passes: Annotated[list[PassResult], Field(min_length=1)]
    curve: list[CurvePoint]
    operating_points: Annotated[list[OperatingPoint], Field(min_length=1)]
    temperature: Temperature | None
    localisation: Localisation | None
    settings: EvaluationSettings
    environment: dict[str, Any]

    def point(self, rule: str) -> OperatingPoint | None:
        """The operating point of a rule, None if it was not asked for."""
        return next((point for point in self.operating_points if point.rule == rule), None)

    @property
    def configured(self) -> OperatingPoint:
        """The model as it is configured: at its threshold, or its only pass."""
        return self.point("threshold") or self.operating_points[0]


def read_evaluation(path: Path) -> Evaluation:
    """Read and check evaluate.json.

    Raises:
        DataError: unreadable, written by another version, or not what evaluate.py writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return parse_evaluation(content, str(path))


def parse_evaluation(content: Any, where: str) -> Evaluation:
    """The evaluation in plain JSON values; `where` they are from. Errors as `read_evaluation`."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{where}: written by another version of lfvit; run evaluate.py again")
    try:
        return Evaluation(**content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name, value = ".".join(map(str, fault["loc"])), repr(fault["input"])[:80]
        raise DataError(f"{where}: {name}={value}: {fault['msg']}; evaluate again") from error

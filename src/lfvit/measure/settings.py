"""Settings of evaluate.py, checked before PyTorch is imported."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lfvit.utils.validation import Settings

Share = Annotated[float, Field(gt=0, lt=1)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class RiskSettings(Settings):
    """Risks to control: every loss at every eps, each with probability 1 - delta."""

    losses: Annotated[list[Literal["consistency", "gap"]], BeforeValidator(_listed)] = Field(
        default=["consistency", "gap"]
    )
    eps: Annotated[list[Share], BeforeValidator(_listed)] = Field(default=[0.01, 0.02, 0.05])
    delta: Share = 0.1


class EvaluationSettings(Settings):
    """What an evaluation reports beside every pass and the threshold curve.

    threshold: eta of the operating point "threshold"; None leaves it out.
    calibration: share of the images, alike in every class, on which thresholds are chosen; they are
        reported on the others. calibration_seed: of that split.
    max_loss: points of top-1 against the last pass. max_gmacs: per image. min_top1: percent.
        max_second: share of the images that reach the last pass. None leaves a rule out.
    temperature: fit one for the first pass.
    risk: None controls none.
    """

    threshold: Annotated[float, Field(ge=0)] | None = None
    calibration: Share = 0.5
    calibration_seed: Annotated[int, Field(ge=0)] = 0
    max_loss: Annotated[float, Field(ge=0, le=100)] | None = 0.5
    max_gmacs: Annotated[float, Field(gt=0)] | None = None
    min_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    max_second: Annotated[float, Field(ge=0, le=1)] | None = None
    temperature: bool = True
    risk: RiskSettings | None = RiskSettings()

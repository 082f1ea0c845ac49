"""Settings of the commands on checkpoints, checked without PyTorch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lfvit.utils.validation import OneOrList, Settings

Share = Annotated[float, Field(gt=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

RUNTIMES = {"torch": ("fp32", "bf16"), "onnx": ("fp32", "int8")}
"""What benchmark.py can time, by what runs the models."""


class RiskSettings(Settings):
    """Risks to control: every loss at every eps, each with probability 1 - delta."""

    losses: Annotated[list[Literal["consistency", "gap"]], OneOrList] = Field(
        default=["consistency", "gap"]
    )
    eps: Annotated[list[Share], OneOrList] = Field(default=[0.01, 0.02, 0.05])
    delta: Share = 0.1


class EvaluationSettings(Settings):
    """What an evaluation reports beside every pass and the threshold curve.

    threshold: eta of the operating point "threshold"; None leaves it out.
    calibration: share of the images, alike in every class, on which thresholds are chosen; they are
        reported on the others. calibration_seed: of that split.
    max_loss: points of top-1 against the last pass. max_gmacs: per image. min_top1: percent.
        max_second: share of the images that reach the last pass. None leaves a rule out.
    temperature: fit one for the first pass.
    risk: None controls none. averaged: the averaged weights, where there are raw ones beside them.
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
    averaged: bool = True


class DiagnosisSettings(Settings):
    """images: how many. removed: share of the patch tokens that are low-frequency ones."""

    images: Positive = 256
    batch_size: Positive = 64
    removed: Share = 0.3


class PredictionSettings(Settings):
    """top: classes to name. pictures: whether to draw them. on_error: of unreadable images."""

    top: Positive = 5
    pictures: bool = True
    on_error: Literal["raise", "skip"] = "raise"


class ExportSettings(Settings):
    """What export.py writes.

    precision: int8 needs photographs. calibrate: a folder of them; None for fp32. agreement: share
        of the photographs that int8 has to answer as float32 does. tolerance: largest difference
        of float32 from PyTorch, relative above 1.
    """

    precision: Literal["fp32", "int8"]
    calibrate: str | None
    agreement: Fraction
    tolerance: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _calibration(self) -> Self:
        if self.precision == "int8" and self.calibrate is None:
            raise ValueError(
                "precision=int8 needs some photographs like those it will see: calibrate=FOLDER"
            )
        if self.precision == "fp32" and self.calibrate is not None:
            raise ValueError(
                f"calibrate={self.calibrate} is for precision=int8, and precision is fp32; pass "
                "both, or neither"
            )
        return self


class DemoSettings(Settings):
    """port: where the page is served."""

    port: Annotated[int, Field(ge=1, le=65535)]


class BenchmarkSettings(Settings):
    """What benchmark.py times. Every precision is combined with every value of compile.

    batch_sizes, exit_fractions: of two-pass models, the share of images that stop early.
    training: a training step as well. runtime: what runs the models, onnxruntime as exported; each
    takes those of the precisions that it has. threads: of the CPU, None leaves them to PyTorch.
    warmup, repeats: untimed and timed rounds. top1_images: of a trained model's accuracy.
    """

    batch_sizes: Annotated[list[Positive], OneOrList, Field(min_length=1)]
    exit_fractions: Annotated[list[Fraction], OneOrList, Field(min_length=1)]
    training: bool
    runtime: Annotated[list[Literal["torch", "onnx"]], OneOrList]
    precision: Annotated[list[Literal["auto", "fp32", "bf16", "int8"]], OneOrList]
    compile: Annotated[list[bool], OneOrList]
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"]
    threads: Positive | None
    warmup: Annotated[int, Field(ge=0)]
    repeats: Positive
    top1_images: Positive

    @model_validator(mode="after")
    def _precisions(self) -> Self:
        for runtime, valid in RUNTIMES.items():
            if runtime in self.runtime and not {"auto", *valid} & {*self.precision}:
                raise ValueError(
                    f"runtime={runtime} has none of precision={self.precision}; add "
                    f"{' or '.join(valid)}, or leave it out"
                )
        return self

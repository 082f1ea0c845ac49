"""Operating points chosen on one part of the images and reported on the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from torch import Tensor

from lfvit.measure.risk import (
    LOSSES,
    NOT_GUARANTEED,
    control_risk,
    mean_loss,
)
from lfvit.measure.temperature import (
    BINS,
    COLDEST,
    HOTTEST,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from lfvit.measure.thresholds import (
    NOBODY_EXITS,
    Answers,
    OperatingPoint,
    answers_of,
    cheapest_at,
    confidence_of,
    default_thresholds,
    stratified_split,
    sweep,
)
from lfvit.utils.validation import check_choice, check_range, check_switch, check_whole

Macs = tuple[float, float]  # multiply-accumulates per image of the first and of the second pass


@dataclass(frozen=True)
class RiskSettings:
    """Which risks to certify: every loss at every eps, each with probability 1 - delta."""

    losses: Sequence[str] = LOSSES
    eps: Sequence[float] = (0.01, 0.02, 0.05)
    delta: float = 0.1

    def __post_init__(self) -> None:
        for loss in self.losses:
            check_choice("risk.losses", loss, LOSSES)
        for eps in self.eps:
            check_range("risk.eps", eps, 0, 1, above=True, below=True)
        check_range("risk.delta", self.delta, 0, 1, above=True, below=True)


@dataclass(frozen=True)
class Calibration:
    """What to choose on the calibration part; None leaves a rule out.

    Raises:
        ConfigError: a value that cannot be met by any model.
    """

    share: float = 0.5  # of the images in the calibration part
    seed: int = 0  # of the split
    max_loss: float = 0.5  # points of top-1
    max_gmacs: float | None = None
    min_top1: float | None = None  # percent
    max_second: float | None = None  # share of the images
    budgeted_batch: int | None = 19  # how many budgets
    temperature: bool = True
    scaled_curve: bool = False
    risk: RiskSettings | None = field(default_factory=RiskSettings)

    def __post_init__(self) -> None:
        check_range("calibration", self.share, 0, 1, above=True, below=True)
        check_whole("calibration_seed", self.seed, 0)
        check_range("max_loss", self.max_loss, 0, 100)
        if self.max_gmacs is not None:
            check_range("max_gmacs", self.max_gmacs, 0, above=True)
        if self.min_top1 is not None:
            check_range("min_top1", self.min_top1, 0, 100)
        if self.max_second is not None:
            check_range("max_second", self.max_second, 0, 1)
        if self.budgeted_batch is not None:
            check_whole("budgeted_batch", self.budgeted_batch, 1)
        for name in ("temperature", "scaled_curve"):
            check_switch(name, getattr(self, name))


@dataclass(frozen=True)
class Split:
    """The calibration part of a set of images, and the part that is reported."""

    chosen: Answers
    rest: Answers
    macs: Macs

    def at(self, threshold: float | None) -> dict[str, OperatingPoint | None]:
        """What a threshold does on each part."""
        if threshold is None:
            return {"calibration": None, "reported": None}
        parts = {"calibration": self.chosen, "reported": self.rest}
        return {name: sweep(part, *self.macs, [threshold])[0] for name, part in parts.items()}


def calibrate(
    first_logits: Tensor,
    second_logits: Tensor,
    targets: Tensor,
    macs: Macs,
    settings: Calibration,
) -> dict[str, Any]:
    """The section "calibration" of evaluate.json.

    Args:
        first_logits, second_logits: (N, C).
        targets: (N,) class indices.
        macs: of each pass, see `count_macs`.

    Raises:
        ConfigError: too few images to fill both parts.
    """
    answers = answers_of(first_logits, second_logits, targets)
    rows = stratified_split(targets, settings.share, settings.seed)
    split = Split(answers.take(rows[0]), answers.take(rows[1]), macs)
    found: dict[str, Any] = {
        "share": settings.share,
        "seed": settings.seed,
        "calibration_images": len(rows[0]),
        "reported_images": len(rows[1]),
        "both_passes": split.at(NOBODY_EXITS),
        "rules": rules(split, settings),
        "budgeted_batch": None,
        "temperature": None,
        "risk": None,
    }
    if settings.budgeted_batch is not None:
        found["budgeted_batch"] = budgeted_batch(split, settings.budgeted_batch)
    if settings.temperature:
        logits = first_logits[rows[0]], first_logits[rows[1]]
        found["temperature"] = temperature(*logits, split, settings.scaled_curve)
    if settings.risk is not None:
        found["risk"] = risks(split, settings.risk)
    return found


def rules(split: Split, settings: Calibration) -> list[dict[str, Any]]:
    """Each rule that is asked for: its threshold, or why there is none, on both parts."""
    chosen, macs = split.chosen, split.macs
    asked: Any = (
        (
            "max_loss",
            "the cheapest threshold that loses at most {:g} points of top-1 against both passes",
            lambda value: loses_at_most(chosen, macs, value),
        ),
        (
            "max_gmacs",
            "the most accurate threshold that costs at most {:g} GMACs per image",
            lambda value: costs_at_most(chosen, macs, value),
        ),
        (
            "min_top1",
            "the cheapest threshold that reaches {:g} % top-1",
            lambda value: reaches(chosen, macs, value),
        ),
        (
            "max_second",
            "the highest threshold that sends at most a share of {:g} to the second pass",
            lambda value: quantile(chosen.confidence, 1 - value),
        ),
    )
    found = []
    for name, text, choose in asked:
        value = getattr(settings, name)
        if value is None:
            continue
        answer: float | str = choose(value)
        threshold = None if isinstance(answer, str) else answer
        found.append(
            {
                "name": name,
                "value": value,
                "rule": f"{text.format(value)} on the calibration part",
                "outcome": f"none: {answer}" if threshold is None else "found",
                "threshold": threshold,
                **split.at(threshold),
            }
        )
    return found


def loses_at_most(answers: Answers, macs: Macs, max_loss: float) -> float:
    """The cheapest threshold within `max_loss` points of both passes' top-1; one always is."""
    curve = sweep(answers, *macs)
    nobody_exits = curve[-1]
    best = cheapest_at(curve, nobody_exits["top1"] - max_loss)
    return (best or nobody_exits)["threshold"]


def reaches(answers: Answers, macs: Macs, top1: float) -> float | str:
    """The cheapest threshold with at least this top-1 (percent), or why there is none."""
    curve = sweep(answers, *macs)
    best = cheapest_at(curve, top1)
    if best is None:
        return f"no threshold reaches more than {max(p['top1'] for p in curve):.2f} %"
    return best["threshold"]


def costs_at_most(answers: Answers, macs: Macs, gmacs: float) -> float | str:
    """The most accurate threshold within a budget of GMACs per image, or why there is none.

    Asked are the steps of the curve, and the threshold that spends the budget to the full. Of
    equally accurate ones, the cheapest.
    """
    first, second = macs
    if gmacs * 1e9 < first:
        return f"the first pass alone costs {first / 1e9:.4g} GMACs"
    spent = quantile(answers.confidence, 1 - min(1, (gmacs * 1e9 - first) / second))
    curve = sweep(answers, *macs, [spent, *default_thresholds()])
    affordable = [p for p in curve if p["gmacs"] <= gmacs * (1 + 1e-9)]
    return max(affordable, key=lambda p: (p["top1"], -p["gmacs"]))["threshold"]


def quantile(confidence: Tensor, exit_fraction: float) -> float:
    """The largest threshold at which at least this share of the images exits.

    Images as confident as the last one exit with it.

    Args:
        confidence: (N,).
        exit_fraction: from 0 to 1.
    """
    exits = ceil(exit_fraction * len(confidence) - 1e-9)
    if exits <= 0:
        return NOBODY_EXITS
    return confidence.sort(descending=True).values[exits - 1].item()


def geometric_fractions(q: float, stages: int) -> list[float]:
    """The share of images each stage answers, proportional to q^k for stage k = 1 ... stages."""
    powers = [q**k for k in range(stages)]
    return [power / sum(powers) for power in powers]


def budgeted_batch(split: Split, budgets: int) -> dict[str, Any]:
    """Accuracy within budgets that are shared by all images together.

    Huang et al., "Multi-Scale Dense Networks", ICLR 2018, section 5 (budgeted batch): stage k
    answers a share of the images proportional to q^k, and its threshold is the confidence that this
    share of held-out images reaches. With two stages q says no more than the share of the first
    does, 1 / (1 + q); the budgets are those of equally spaced shares.
    """
    shares = [(i + 1) / (budgets + 1) for i in range(budgets)]
    points = []
    for share in shares:
        q = (1 - share) / share
        fractions = geometric_fractions(q, stages=2)
        threshold = quantile(split.chosen.confidence, fractions[0])
        points.append(
            {
                "q": q,
                "exit_fractions": fractions,
                "budget_gmacs": (split.macs[0] + fractions[1] * split.macs[1]) / 1e9,
                "threshold": threshold,
                **split.at(threshold),
            }
        )
    return {
        "protocol": "the first pass answers 1 / (1 + q) of the images, the second pass the others; "
        "the threshold is the confidence that this share of the calibration part reaches, and "
        "accuracy and cost are those of the other part",
        "points": points,
    }


def temperature(chosen: Tensor, rest: Tensor, split: Split, curve: bool) -> dict[str, Any]:
    """Temperature scaling of the first pass, fitted on the calibration part.

    Args:
        chosen, rest: (N, C) logits of the first pass on either part.
        curve: whether to add the threshold curve of the other part on scaled confidences.
    """
    fitted = fit_temperature(chosen, split.chosen.targets)
    found: dict[str, Any] = {
        "temperature": fitted,
        "outcome": "found"
        if fitted is not None
        else f"none: no temperature from {COLDEST:g} to {HOTTEST:g} is the best on the "
        "calibration part",
        "bins": BINS,
    }
    parts = ("calibration", chosen, split.chosen), ("reported", rest, split.rest)
    for name, logits, answers in parts:
        for when, value in (("before", 1.0), ("after", fitted)):
            found.setdefault(name, {})[when] = value and {
                "ece": expected_calibration_error(logits, answers.targets, value),
                "nll": negative_log_likelihood(logits, answers.targets, value),
            }
    if curve and fitted is not None:
        scaled = split.rest._replace(confidence=confidence_of(rest, fitted))
        found["curve"] = sweep(scaled, *split.macs)
    return found


def risks(split: Split, settings: RiskSettings) -> dict[str, Any]:
    """Every loss at every eps, certified on the calibration part and looked up on the other.

    On confidences as they are: scaled by a temperature fitted on the same images they would depend
    on them, and the guarantee would not hold.
    """
    found = []
    for loss in settings.losses:
        for eps in settings.eps:
            certificate = control_risk(split.chosen, loss, eps, settings.delta)
            points: Any = split.at(certificate["threshold"])
            for name, part in (("calibration", split.chosen), ("reported", split.rest)):
                if points[name] is not None:
                    points[name]["risk"] = mean_loss(part, loss, points[name]["threshold"])
            found.append({**certificate, **points})
    return {"delta": settings.delta, "certificates": found, "not_guaranteed": NOT_GUARANTEED}

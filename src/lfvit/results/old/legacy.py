"""Evaluations in the shape of the format before passes; goes when every reader uses the schema."""

from typing import Any

from lfvit.measure.schemas import Evaluation, OperatingPoint


def legacy(evaluation: Evaluation) -> dict[str, Any]:
    """The contents of an evaluate.json of format 1."""
    content = evaluation.model_dump()
    passes = content.pop("passes")
    content.pop("operating_points")
    content |= {
        "first": passes[0],
        "second": passes[1] if len(passes) > 1 else None,
        "operating_point": None,
        "calibrated": None,
        "calibration": None,
        "unreadable_images": content.pop("skipped_images"),
        "macs_counter": "fvcore",
    }
    if content["localisation"] is None:
        del content["localisation"]
    if len(passes) == 1:
        return content
    content["operating_point"] = _point(evaluation.configured)
    held_out = [point for point in evaluation.operating_points if point.chosen_on]
    settings = evaluation.settings.model_dump()
    rules = [_rule(point) for point in held_out if "<=" not in point.rule]
    certificates = [_certificate(point) for point in held_out if "<=" in point.rule]
    share = {"share": settings["calibration"], "seed": settings["calibration_seed"]}
    reference = held_out[0].reference_top1 if held_out else passes[1]["top1"]
    content["calibration"] = {
        **share,
        "calibration_images": held_out[0].chosen_on if held_out else 0,
        "reported_images": held_out[0].images if held_out else 0,
        "both_passes": {"reported": {"top1": reference}},
        "rules": rules,
        "risk": {
            "delta": settings["risk"]["delta"],
            "certificates": certificates,
            "not_guaranteed": "each bound holds by itself, for the average image of the same "
            "distribution",
        }
        if certificates
        else None,
        "temperature": None,
    }
    scaling = content["temperature"]
    if scaling is not None:
        content["calibration"]["temperature"] = {
            "temperature": scaling["temperature"],
            "reported": {"before": scaling["before"], "after": scaling["after"]},
        }
    chosen = next((rule for rule in rules if rule["name"] == "max_loss"), None)
    if chosen is not None:
        content["calibrated"] = {
            "rule": chosen["rule"],
            "seed": share["seed"],
            "calibration_images": held_out[0].chosen_on,
            "reported_images": held_out[0].images,
            **chosen["reported"],
            "second_top1": reference,
        }
    return content


def _point(point: OperatingPoint) -> dict[str, Any] | None:
    if point.top1 is None:
        return None
    gap = (point.reference_top1 - point.top1) / 100
    names = ("threshold", "top1", "exit_fraction", "gmacs", "consistency")
    return {**{name: getattr(point, name) for name in names}, "gap": gap}


def _rule(point: OperatingPoint) -> dict[str, Any]:
    name, value = point.rule.split("=")
    return {
        "name": name,
        "value": float(value),
        "rule": point.rule,
        "outcome": "found" if point.reason is None else f"none: {point.reason}",
        "threshold": point.threshold,
        "reported": _point(point),
    }


def _certificate(point: OperatingPoint) -> dict[str, Any]:
    loss, eps = point.rule.split("<=")
    reported: Any = _point(point)
    if reported is not None:
        reported["risk"] = reported["consistency" if loss == "consistency" else "gap"]
    return {
        "loss": loss,
        "eps": float(eps),
        "outcome": "found" if point.reason is None else f"none: {point.reason}",
        "threshold": point.threshold,
        "reported": reported,
    }

"""Tables from the contents of result files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lfvit.utils.markdown import escape

KINDS = ("pass", "threshold", "rule", "certificate")


def operating_points(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every way of running the model that an evaluate.json reports.

    Yields:
        ``run`` in words; ``kind``, one of `KINDS`; ``images`` it was measured on; threshold, top1
        (percent), gmacs, exit_fraction, consistency and gap as far as known. Of a rule or a
        certificate also what it asks for and its ``outcome``, and None for what was not found.
    """
    whole = {"images": found["images"]}
    if found["second"] is None:
        yield {"run": "one pass", "kind": "pass", **whole, **found["first"]}
        return
    ends = {point["threshold"]: point for point in found.get("curve") or []}
    risks = ("consistency", "gap")
    first = {key: ends[0.0][key] for key in risks if key in ends.get(0.0, {})}
    everyone = {"exit_fraction": 1.0, **first}
    nobody = {"exit_fraction": 0.0, "consistency": 0.0, "gap": 0.0}
    yield {"run": "first pass alone", "kind": "pass", **whole, **found["first"], **everyone}
    yield {"run": "both passes", "kind": "pass", **whole, **found["second"], **nobody}
    point = found.get("operating_point")
    if point is not None:
        name = f"early exit, η = {point['threshold']:g}"
        yield {"run": name, "kind": "threshold", **whole, **point}
    yield from _chosen(found)


def _chosen(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The thresholds chosen on one part of the images, as they do on the other."""
    parts = found.get("calibration")
    if parts is None:  # a file from before there were several rules
        old = found.get("calibrated")
        if old is not None:
            yield {
                "run": "early exit, calibrated",
                "kind": "rule",
                "images": old.get("reported_images"),
                **{key: old.get(key) for key in ("threshold", "top1", "exit_fraction", "gmacs")},
            }
        return
    nothing = {"threshold": None, "top1": None, "exit_fraction": None, "gmacs": None}
    reported = {"images": parts["reported_images"]}
    for rule in parts["rules"]:
        name = "calibrated" if rule["name"] == "max_loss" else f"{rule['name']}={rule['value']:g}"
        yield {
            "run": f"early exit, {name}",
            "kind": "rule",
            "rule": rule["name"],
            "value": rule["value"],
            "outcome": rule["outcome"],
            **reported,
            **(rule["reported"] or nothing),
        }
    for found_risk in parts["risk"]["certificates"] if parts.get("risk") else []:
        yield {
            "run": f"early exit, {found_risk['loss']} risk ≤ {found_risk['eps']:g}",
            "kind": "certificate",
            "rule": found_risk["loss"],
            "value": found_risk["eps"],
            "outcome": found_risk["outcome"],
            **reported,
            **(found_risk["reported"] or nothing),
        }


def is_plain(found: Mapping[str, Any]) -> bool:
    """Whether an evaluate.json is about a one-pass model without a token reducer."""
    return found["second"] is None and (found.get("reducer") or {}).get("name", "none") == "none"


def threshold_table(curve: Sequence[Mapping[str, float]], step: int = 10) -> str:
    """Every step-th point of a threshold curve, and its last, as a Markdown table.

    With the risks of each point, in percent, where the file has them.
    """
    points = [*curve[:-1:step], curve[-1]]
    risks = all("consistency" in p for p in points)
    lines = [
        "| η | top-1 (%) | answered early (%) | GMACs |"
        + (" other answers (%) | top-1 lost |" if risks else ""),
        "|--:|--:|--:|--:|" + ("--:|--:|" if risks else ""),
    ]
    lines += [
        f"| {p['threshold']:.2f} | {p['top1']:.2f} | {100 * p['exit_fraction']:.1f} "
        f"| {p['gmacs']:.4f} |"
        + (f" {100 * p['consistency']:.2f} | {100 * p['gap']:.2f} |" if risks else "")
        for p in points
    ]
    return "\n".join(lines)


def rules_table(calibration: Mapping[str, Any]) -> str:
    """Every rule that was asked for, on the part of the images it was not chosen on."""
    lines = [
        "| rule | η | top-1 (%) | both passes (%) | answered early (%) | GMACs |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    both = calibration["both_passes"]["reported"]["top1"]
    for rule in calibration["rules"]:
        point = rule["reported"]
        words = escape(rule["rule"].removesuffix(" on the calibration part"))
        if point is None:
            lines.append(f"| {words}: {escape(rule['outcome'])} | | | {both:.2f} | | |")
            continue
        lines.append(
            f"| {words} | {point['threshold']:.4g} | {point['top1']:.2f} | {both:.2f} "
            f"| {100 * point['exit_fraction']:.1f} | {point['gmacs']:.4f} |"
        )
    return "\n".join(lines)


RISKS = {"consistency": "another answer than both passes'", "gap": "top-1 lost to both passes"}


def certificates_table(risk: Mapping[str, Any]) -> str:
    """Every certified threshold: its bound, and the risk met on the images it was not chosen on."""
    lines = [
        "| risk | bound (%) | η | met (%) | top-1 (%) | answered early (%) | GMACs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for found in risk["certificates"]:
        start = f"| {RISKS.get(found['loss'], escape(found['loss']))} | {100 * found['eps']:g} |"
        point = found["reported"]
        if point is None:
            lines.append(f"{start} {escape(found['outcome'])} | | | | |")
            continue
        lines.append(
            f"{start} {point['threshold']:.2f} | {100 * point['risk']:.2f} | {point['top1']:.2f} "
            f"| {100 * point['exit_fraction']:.1f} | {point['gmacs']:.4f} |"
        )
    return "\n".join(lines)

"""Tables from the contents of result files."""

from collections.abc import Mapping, Sequence
from typing import Any


def comparison_rows(models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per model and way of running it, from several evaluate.json.

    The last model is the yardstick: ``cost`` is the share of its GMACs.
    """
    yardstick = list(models.values())[-1]["first"]["gmacs"]
    rows = []
    for name, found in models.items():
        ways: dict[str, Mapping[str, Any] | None] = {"one pass": found["first"]}
        if found["second"] is not None:
            ways = {
                "first pass alone": found["first"],
                "both passes": found["second"],
                "early exit, calibrated": found["calibrated"],
            }
        for way, point in ways.items():
            if point is None:
                continue
            rows.append(
                {
                    "model": name,
                    "run": way,
                    "threshold": point.get("threshold"),
                    "top1": point["top1"],
                    "gmacs": point["gmacs"],
                    "cost": point["gmacs"] / yardstick,
                    "exit_fraction": point.get("exit_fraction"),
                }
            )
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `comparison_rows` as a Markdown table, with their speed where it was measured."""
    timed = all("images_per_second" in row for row in rows)
    lines = [
        "| model | run | η | top-1 (%) | GMACs | cost of one pass (%) | answered early (%) |"
        + (" images/s |" if timed else ""),
        "|---|---|--:|--:|--:|--:|--:|" + ("--:|" if timed else ""),
    ]
    for row in rows:
        eta, exits = row["threshold"], row["exit_fraction"]
        lines.append(
            f"| {row['model']} | {row['run']} | {'' if eta is None else f'{eta:.2f}'} "
            f"| {row['top1']:.2f} | {row['gmacs']:.4f} | {100 * row['cost']:.0f} "
            f"| {'' if exits is None else f'{100 * exits:.1f}'} |"
            + (f" {row['images_per_second']:.0f} |" if timed else "")
        )
    return "\n".join(lines)


def threshold_table(curve: Sequence[Mapping[str, float]], step: int = 10) -> str:
    """Every step-th point of a threshold curve, and its last, as a Markdown table."""
    points = [*curve[:-1:step], curve[-1]]
    lines = ["| η | top-1 (%) | answered early (%) | GMACs |", "|--:|--:|--:|--:|"]
    lines += [
        f"| {p['threshold']:.2f} | {p['top1']:.2f} | {100 * p['exit_fraction']:.1f} "
        f"| {p['gmacs']:.4f} |"
        for p in points
    ]
    return "\n".join(lines)

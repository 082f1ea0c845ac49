"""The card of a model in the zoo: what it is, how it came about, what it reaches, its limits."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfvit.results.results import without_paths
from lfvit.results.tables import operating_points

RECORDED = (
    *("method", "backbone", "reducer", "image_size", "data", "schedule"),
    *("seed", "threshold", "classes", "commit"),
)
PATHS = ("root", "label_maps")
"""Settings of the data that say where something lies on one machine."""


def portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's record without the places of the machine it was trained on."""
    kept = {key: record[key] for key in RECORDED if key in record}
    data = record.get("data", {})
    kept["data"] = {key: None if key in PATHS else value for key, value in data.items()}
    return kept


def make_card(
    name: str,
    weights: Path,
    record: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    data: str,
    remark: str = "",
) -> dict[str, Any]:
    """The contents of NAME.json.

    Args:
        name: in the zoo.
        weights: the file.
        record: see `portable`.
        training: contents of its metrics.json and environment.json, under "metrics" and
            "environment"; under "start" the weights it started from, in words.
        evaluation: the contents of evaluate.json for this very file.
        data: the images in words.
        remark: what else a user must know, in a sentence.
    """
    metrics, made = training["metrics"], training["environment"]
    facts = ("epochs", "train_images", "val_images", "parameters", "train_seconds", "machine")
    command = f"python evaluate.py ckpt_path=zoo:{name}"
    command += " data.root=DIR" if "root" in record["data"] else ""
    return {
        "name": name,
        "data": data,
        "remark": remark,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "record": dict(record),
        "training": {
            "command": without_paths(made["command"]),
            "commit": made["commit"],
            "start": training["start"],
            **{key: metrics.get(key) for key in facts},
            "packages": made["packages"],
        },
        "evaluation": {
            **evaluation,
            "checkpoint": f"zoo:{name}",
            "environment": {**evaluation["environment"], "command": command},
        },
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    name, found, record, made = (card[k] for k in ("name", "evaluation", "record", "training"))
    root = " data.root=DIR" if "root" in record["data"] else ""
    minutes = made["train_seconds"] / 60
    parts = [
        f"# {name}",
        _what(card),
        f"```sh\npython predict.py ckpt_path=zoo:{name} image=FILE_OR_FOLDER\n"
        f"python evaluate.py ckpt_path=zoo:{name}{root}\n```",
        "## What it reaches",
        f"On {found['images']:,} validation images of {card['data']}, by the second command, with "
        f"the weights of this file ({found['precision']}); rows with * are thresholds chosen on "
        "one half of these images and reported on the other.",
        _table(found),
        "## How it was trained",
        f"From {made['start']}: {made['epochs']} epochs over {made['train_images']:,} images, "
        f"{minutes:.0f} minutes, by\n\n"
        f"```\n{made['command']}\n```\n\nat commit {made['commit']}, on {made['machine']}, with "
        f"torch {made['packages']['torch']} and timm {made['packages']['timm']}. Seed "
        f"{record['seed']}. The weights are the averaged ones of the last epoch: none were chosen "
        "by their accuracy on the validation images.",
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(card)),
    ]
    return "\n\n".join(parts) + "\n"


def _what(card: Mapping[str, Any]) -> str:
    record, found = card["record"], card["evaluation"]
    backbone = {k: v for k, v in record["backbone"].items() if v is not None}
    words = ", ".join(f"{key} {value}" for key, value in backbone.items())
    reducer = (record.get("reducer") or {}).get("name", "none")
    inside = "" if reducer == "none" else f" with the token reducer {reducer}"
    two = "two passes" if found["second"] is not None else "one pass"
    return (
        f"`{record['method']['name']}`{inside}, {two}, {record['image_size']} x "
        f"{record['image_size']} pixels, {len(record['classes'])} classes; {words}. "
        f"{card['training']['parameters'] / 1e6:.2f} M parameters, {card['bytes'] / 1e6:.1f} MB in "
        "half precision, float32 in use."
    )


def _table(found: Mapping[str, Any]) -> str:
    lines = [
        "| run | η | top-1 (%) | top-5 (%) | GMACs | answered early (%) | images |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for point in operating_points(found):
        if point["top1"] is None:
            lines.append(f"| {point['run']}: {point['outcome']} | | | | | | |")
            continue
        chosen = " *" if point["kind"] in ("rule", "certificate") else ""
        eta, top5, exits = (point.get(k) for k in ("threshold", "top5", "exit_fraction"))
        cells = [
            point["run"] + chosen,
            "" if eta is None else f"{eta:.4g}",
            f"{point['top1']:.2f}",
            "" if top5 is None else f"{top5:.2f}",
            f"{point['gmacs']:.4f}",
            "" if exits is None else f"{100 * exits:.1f}",
            f"{point['images']:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _limits(card: Mapping[str, Any]) -> list[str]:
    classes = card["record"]["classes"]
    few = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
    lines = [
        f"It knows these classes and no other, and gives one of them for any image: {few}.",
        f"Trained on {card['training']['train_images']:,} images and one seed: a starting point "
        "and a demonstration, not a classifier to rely on.",
    ]
    if card["evaluation"]["second"] is not None:
        lines.append(
            "Thresholds were chosen on images like those of the table; on others the same "
            "threshold has another accuracy, cost and share of early answers."
        )
    return [*lines, *([card["remark"]] if card["remark"] else [])]

"""How a model came about: the weights its training started from, commands, commits, versions."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfvit.utils.markdown import code, escape

if TYPE_CHECKING:
    from lfvit.results.collect import Run


def provenance(runs: Sequence["Run"]) -> str:
    """How the seeds of a model were trained and evaluated, in sentences of Markdown."""
    run, evaluation = runs[0], runs[0].evaluation
    evaluated = f"Evaluated at commit {escape(evaluation.environment.get('commit'))}."
    metrics, environment = run.metrics, run.environment
    if not metrics or not environment:
        return f"Trained elsewhere. {evaluated}"
    commits = sorted({str(seed.environment.get("commit")) for seed in runs})
    minutes = [f"{seed.metrics['train_seconds'] / 60:.0f}" for seed in runs if seed.metrics]
    packages = environment["packages"]
    return (
        f"Seed {', '.join(str(seed.seed) for seed in runs)}: "
        f"{code(without_paths(environment['command']))}, commit {escape(', '.join(commits))}, "
        f"{escape(metrics['machine'])}, {environment['threads']} threads, torch "
        f"{escape(packages.get('torch'))}, timm {escape(packages.get('timm'))}. From "
        f"{escape(run.start)}: {metrics['epochs']} epochs over {metrics['train_images']:,} images, "
        f"{metrics['parameters'] / 1e6:.2f} M parameters, {' and '.join(minutes)} minutes. "
        f"{evaluated}"
    )


def run_folder(weights: str | Path, near: Path) -> Path | None:
    """The run folder that wrote some weights; None if no run did, or it is gone.

    Args:
        weights: path of a checkpoint, as a run recorded it.
        near: folder of that run. A relative path is searched for from every folder above it. So are
            the last four parts of any other, such as vit/seed0/checkpoints/last.ckpt: of runs that
            were moved together.
    """
    weights = Path(weights)
    for path in (weights, Path(*weights.parts[-4:])):
        for above in (Path(), *near.absolute().parents):
            folder = (above / path).parent.parent
            if os.path.exists(folder / "metrics.json"):
                return folder
    return None


def describe_start(
    config: Mapping[str, Any], before: Mapping[str, Any], metrics: Mapping[str, Any]
) -> str:
    """The initial weights of a training in words, such as "random weights".

    Args:
        config: of the training.
        before, metrics: config.yaml and metrics.json of the run that wrote its initial weights;
            empty where there is none.
    """
    if not config.get("init_from"):
        return "timm's pretrained weights" if config.get("pretrained") else "random weights"
    if not before or not metrics:
        return f"the weights {Path(str(config['init_from'])).name}"
    method, size = (before.get("method") or {}).get("name"), before.get("image_size")
    return (
        f"{describe_start(before, {}, {})}, after {metrics['epochs']} epochs of {method} on {size} "
        f"x {size} pixels ({metrics['train_seconds'] / 60:.0f} minutes)"
    )


def without_paths(command: str) -> str:
    """The command with absolute paths replaced by DIR, in lists of overrides as well."""
    try:
        words = shlex.split(command)
    except ValueError:  # not a command that was recorded by this project
        return command
    return shlex.join(re.sub(r"(^|[=,\[])/[^,\]]*", r"\1DIR", word) for word in words)

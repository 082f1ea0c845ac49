"""Run folders without training: predictions are drawn, and the files are what commands write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lfvit.measure.operating_points import operating_points
from lfvit.measure.schemas import Evaluation
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.thresholds import sweep

BACKBONE = {"family": "vit", "embed_dim": 24, "depth": 5, "num_heads": 2}
CLASSES = 3
GMACS = {"lf_vit": [1.0, 3.0], "cf_vit": [1.0, 3.5], "vit": [4.0]}


def draw_predictions(passes: int, seed: int, images: int = 60) -> pd.DataFrame:
    """Predictions that get better with every pass, more often where the confidence is high."""
    random = np.random.default_rng(seed)
    target = np.arange(images) % CLASSES
    table = pd.DataFrame({"target": target.astype("int32")})
    for i in range(1, passes + 1):
        confidence = random.uniform(0.3, 1, images).astype("float32")
        right = random.uniform(size=images) < (0.45 + 0.15 * i) * (0.5 + 0.5 * confidence)
        table[f"prediction_{i}"] = np.where(right, target, (target + 1) % 3).astype("int32")
        table[f"confidence_{i}"] = confidence
    return table.set_index(pd.Index([f"val/{i:03d}.jpg" for i in range(images)], name="image"))


def make_evaluation(
    predictions: pd.DataFrame, method: dict[str, Any], checkpoint: str, **fields: Any
) -> Evaluation:
    """The evaluation of a model that predicts this."""
    gmacs = GMACS[method["name"]]
    macs = [1e9 * value for value in np.diff([0, *gmacs])]
    settings = EvaluationSettings(threshold=0.7 if len(gmacs) > 1 else None, max_gmacs=2.0)
    points = operating_points(predictions, macs, settings)
    passes = [
        {"top1": top1, "top5": 100.0, "gmacs": cost}
        for top1, cost in zip(points["top1"], gmacs, strict=False)
    ]
    curve = sweep(predictions, macs).drop(columns="consistency") if len(gmacs) > 1 else None
    content = {
        "checkpoint": checkpoint,
        "method": method,
        "backbone": BACKBONE,
        "reducer": {"name": "none"},
        "image_size": 112,
        "seed": 0,
        "data": "fruit",
        "precision": "32-true",
        "images": len(predictions),
        "skipped_images": 0,
        "passes": passes,
        "curve": [] if curve is None else curve.to_dict("records"),
        "operating_points": points.to_dict("records"),
        "temperature": None,
        "localisation": None,
        "settings": settings.model_dump(),
        "environment": {"command": "python evaluate.py", "commit": "abc", "machine": "a machine"},
    }
    return Evaluation(**(content | fields))


def make_run(folder: Path, method: str = "lf_vit", seed: int = 0, **config: Any) -> Path:
    """A training and, below it, its evaluation."""
    settings = {"name": method} | ({"selector": "ngca"} if method == "lf_vit" else {})
    predictions = draw_predictions(len(GMACS[method]), 10 * seed + len(method))
    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    evaluation = make_evaluation(predictions, settings, checkpoint)
    (folder / "evaluation").mkdir(parents=True)
    config = {
        "method": settings,
        "image_size": 112,
        "init_from": None,
        "schedule": {"selection_start": 1},
        "optimizer": {"lr": 0.001},
        "seed": seed,
        "run_dir": str(folder),
        **config,
    }
    packages = {"torch": "2", "timm": "1"}
    environment = {
        "command": "python train.py",
        "commit": "abc",
        "threads": 1,
        "packages": packages,
    }
    metrics = {"machine": "a machine", "epochs": 2, "train_images": 90, "parameters": 10**6}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write(folder / "metrics.json", {**metrics, "train_seconds": 600.0})
    write(folder / "environment.json", environment)
    write(folder / "run.json", {"status": "done"})
    write(folder / "evaluation" / "evaluate.json", evaluation.model_dump())
    (folder / "evaluation" / "config.yaml").write_text(yaml.safe_dump({"risk": {"delta": 0.1}}))
    predictions.reset_index().to_parquet(folder / "evaluation" / "predictions.parquet")
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    write(path, {key: value for key, value in content.items() if changes.get(key, 0) is not None})


def make_runs(root: Path) -> Path:
    """Two seeds of LF-ViT, CF-ViT and a one-pass ViT."""
    for name, method, seed in (
        ("lf_0", "lf_vit", 0),
        ("lf_1", "lf_vit", 1),
        ("cf_0", "cf_vit", 0),
        ("vit_0", "vit", 0),
    ):
        make_run(root / name, method, seed)
    return root

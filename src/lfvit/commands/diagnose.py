"""`diagnose(cfg)`: how smooth a trained model's tokens become from block to block."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lfvit.data import ImageDataset
from lfvit.measure.diagnosis import Diagnosis, summarise
from lfvit.models.zoo import locate
from lfvit.results.plots import plot_diagnosis
from lfvit.runs.devices import check_one_device, prediction_trainer
from lfvit.runs.directory import start_run
from lfvit.runs.provenance import environment
from lfvit.runs.setup import load_trained, model_overrides, open_data
from lfvit.utils.atomic_io import write_json
from lfvit.utils.validation import check_range, check_whole


def diagnose(cfg: DictConfig) -> dict[str, Any]:
    """Diagnose as configured; writes diagnose.json, diagnose.csv, diagnose.png and diagnose.svg.

    The curves of Figures 1, 2 and 4 of "Frequency-Aware Token Reduction for Efficient Vision
    Transformer" (Lee et al., NeurIPS 2025), defined in `lfvit.measure.spectrum`.

    Returns:
        The contents of diagnose.json.

    Raises:
        LFViTError: anything the user can mend.
    """
    check_range("removed", cfg.removed, 0, 1, above=True, below=True)
    if cfg.images is not None:
        check_whole("images", cfg.images, 1)
    check_one_device(cfg, "the statistics of all tokens are taken in one process")
    model, record = load_trained(cfg.ckpt_path, model_overrides(cfg))
    data = open_data(cfg, record)
    data.val_images = Subset(data.val_images, cfg.images)
    run_dir = start_run(cfg)
    L.seed_everything(record.get("seed", 0), verbose=False)
    trainer = prediction_trainer(cfg, run_dir)
    batches: Any = trainer.predict(Diagnosis(model, cfg.removed), datamodule=data)
    found = {
        "checkpoint": str(locate(cfg.ckpt_path).absolute()),
        "method": record["method"],
        "backbone": record["backbone"],
        "image_size": record["image_size"],
        "images": len(data.val_images) - data.num_skipped,
        "skipped_images": data.num_skipped,
        "removed": cfg.removed,
        "rows": summarise([batch for batch in batches if batch is not None]),
        "precision": str(trainer.precision),
        "environment": environment(),
    }
    write_json(run_dir / "diagnose.json", found)
    with (run_dir / "diagnose.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found["rows"][0]))
        writer.writeheader()
        writer.writerows(found["rows"])
    plot_diagnosis(found, [run_dir / "diagnose.png", run_dir / "diagnose.svg"])
    _print(found, run_dir)
    return found


class Subset:
    """Some images of a source, drawn without regard to its order, always the same ones.

    Args:
        source: the images.
        count: how many; None, or more than there are, is all of them.
    """

    def __init__(self, source: ImageDataset, count: int | None) -> None:
        self.source = source
        self.classes = source.classes
        count = min(count or len(source), len(source))
        order = np.random.default_rng(0).permutation(len(source))
        self.indices: list[int] = sorted(order[:count].tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.source[self.indices[index]]


def _print(found: dict[str, Any], run_dir: Path) -> None:
    console = Console(markup=False)
    columns = {
        "log_amplitude": "log HF\namplitude",
        "last_similarity": "~ last\nblock",
        "dc_similarity": "~ DC\nall",
        "hf_dc_similarity": "~ DC\nHF set",
        "lf_dc_similarity": "~ DC\nLF set",
        "hf_amplitude": "norm\nHF set",
        "lf_amplitude": "norm\nLF set",
    }
    for name in dict.fromkeys(row["pass"] for row in found["rows"]):
        table = Table(title=f"{name}, {found['images']} images")
        for column in ("block", *columns.values()):
            table.add_column(column, justify="right")
        for row in found["rows"]:
            if row["pass"] == name:
                values = (row[key] for key in columns)
                cells = ("" if value is None else f"{value:.3f}" for value in values)
                table.add_row(str(row["block"] or "input"), *cells)
        table.caption = "~: cosine similarity; norm: without DC, relative to all tokens"
        console.print(table)
    console.print(f"written to {run_dir}", soft_wrap=True)

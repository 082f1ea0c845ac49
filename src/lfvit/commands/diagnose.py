"""`diagnose(cfg)`: how smooth a trained model's tokens become from block to block."""

from typing import Any

import lightning as L
import pandas as pd
import torch
from omegaconf import DictConfig

from lfvit.data.augment import normalize
from lfvit.errors import ConfigError
from lfvit.measure.diagnosis import diagnose_batch, summarize
from lfvit.measure.settings import DiagnosisSettings
from lfvit.models import zoo
from lfvit.models.passes import num_passes
from lfvit.results.plots import plot_diagnosis
from lfvit.runs.datasets import open_data
from lfvit.runs.directory import start_run
from lfvit.runs.models import load_trained, with_seed
from lfvit.runs.provenance import environment
from lfvit.runs.record import model_overrides
from lfvit.runs.trainers import find_device, inference_context
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import print_table
from lfvit.utils.validation import validate

COLUMNS = {
    "block": "block",
    "log_amplitude": "log amplitude",
    "last_similarity": "~ last",
    "dc_similarity": "~ DC",
    "hf_dc_similarity": "HF ~ DC",
    "lf_dc_similarity": "LF ~ DC",
    "hf_amplitude": "HF norm",
    "lf_amplitude": "LF norm",
}


def diagnose(cfg: DictConfig) -> dict[str, Any]:
    """Diagnose the checkpoint ``cfg.ckpt_path`` on some validation images.

    Writes diagnose.json, diagnose.csv, diagnose.png and diagnose.svg: the curves of Figures 1, 2
    and 4 of "Frequency-Aware Token Reduction for Efficient Vision Transformer" (Lee et al., NeurIPS
    2025), defined in `lfvit.measure.spectrum`.

    Returns:
        The contents of diagnose.json.

    Raises:
        LFViTError: a setting, the checkpoint or the data is at fault.
    """
    settings = validate(DiagnosisSettings, {k: cfg[k] for k in DiagnosisSettings.model_fields})
    device = find_device(cfg.accelerator)
    model, record = load_trained(cfg.ckpt_path, model_overrides(cfg))
    if num_passes(model) > 2:
        raise ConfigError(
            f"method={record.method['name']} has more than two passes; the diagnosis is of models "
            "of one or two"
        )
    record = with_seed(cfg, record)
    data = open_data(cfg.get("data"), record)
    run_dir = start_run(cfg)
    L.seed_everything(record.seed, verbose=False)
    samples = data.some_validation_samples(settings.images)
    model.to(device)
    pixels = torch.stack([sample.pixels for sample in samples])  # (N, 3, S, S) uint8
    with inference_context(cfg.precision, device):
        batches = [
            diagnose_batch(model, normalize(part.to(device), data.preprocessing), settings.removed)
            for part in pixels.split(settings.batch_size)
        ]
    rows = summarize(batches)
    diagnosis = {
        "checkpoint": str(zoo.locate(cfg.ckpt_path).absolute()),
        "method": record.method,
        "backbone": record.backbone,
        "image_size": record.image_size,
        "images": len(samples),
        "removed": settings.removed,
        "rows": rows,
        "environment": environment(),
    }
    write_json(run_dir / "diagnose.json", diagnosis)
    pd.DataFrame(rows).to_csv(run_dir / "diagnose.csv", index=False)
    plot_diagnosis(diagnosis, [run_dir / "diagnose.png", run_dir / "diagnose.svg"])
    for number in dict.fromkeys(row["pass"] for row in rows):
        print_table(
            [row for row in rows if row["pass"] == number],
            formats=dict.fromkeys(list(COLUMNS)[1:], ".3f"),
            titles=COLUMNS,
            title=f"pass {number}, {len(samples)} images",
            caption="~: cosine similarity; norm: without DC, relative to all tokens",
        )
    print(f"written to {run_dir}")
    return diagnosis

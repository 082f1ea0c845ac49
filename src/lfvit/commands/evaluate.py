"""`evaluate(cfg)`: accuracy and cost of every pass, threshold and operating point of a model."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from lfvit.data import ImageDataModule
from lfvit.data.datamodule import normalize
from lfvit.data.images import printable
from lfvit.measure.costs import is_adaptive, macs_by_image, pass_macs
from lfvit.measure.localisation import random_windows, summarize
from lfvit.measure.operating_points import operating_points
from lfvit.measure.per_class import MATRIX, SHOWN, TABLE, confusion_matrix, per_class
from lfvit.measure.predictions import (
    FILE,
    Predictions,
    pass_results,
    predict_all,
    save_predictions,
)
from lfvit.measure.schemas import Evaluation, Localisation
from lfvit.measure.settings import EvaluationSettings
from lfvit.measure.temperature import scale_temperature
from lfvit.measure.thresholds import advise, stratified_split, sweep
from lfvit.models import zoo
from lfvit.runs.datasets import open_data
from lfvit.runs.directory import start_run
from lfvit.runs.models import load_trained, with_seed
from lfvit.runs.provenance import environment
from lfvit.runs.record import CheckpointRecord, model_overrides
from lfvit.runs.trainers import prediction_trainer
from lfvit.tracking.loggers import evaluation_summary, log_table, tracked
from lfvit.tracking.loggers import summarise as log_summary
from lfvit.tracking.pictures import log_predictions
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.extras import can_draw
from lfvit.utils.markdown import print_table
from lfvit.utils.validation import plain, validate

COST_IMAGES = 64  # on which a cost that depends on the image is measured


def evaluate(cfg: DictConfig) -> Evaluation:
    """Evaluate the checkpoint ``cfg.ckpt_path`` on the validation images.

    Writes evaluate.json, predictions.parquet per_class.csv, confusion_matrix.csv (and .png up
    to 50 classes), and, of a model with several passes, evaluate.png.

    Returns:
        The contents of evaluate.json.

    Raises:
        LFViTError: a setting, the checkpoint or the data is at fault.
    """
    settings = validate(
        EvaluationSettings, {name: plain(cfg[name]) for name in EvaluationSettings.model_fields}
    )
    model: Any
    model, record = load_trained(cfg.ckpt_path, model_overrides(cfg), settings.averaged)
    settings = settings.model_copy(update={"threshold": record.threshold})
    record = with_seed(cfg, record)
    data = open_data(cfg.get("data"), record)
    run_dir = start_run(cfg)
    with tracked(cfg, "evaluate", record) as loggers:
        trainer = prediction_trainer(cfg, run_dir)
        predictions = predict_all(trainer, model, data, record.seed)
        by_image = macs_on(model, data)
        macs = by_image.mean(dim=0).tolist()
        table = predictions.table()
        paths = [data.options.get(key) for key in ("root", "path")]
        dataset = getattr(data.dataset, "func", data.dataset)
        early_exit = len(macs) > 1
        curve = sweep(table, macs).drop(columns="consistency") if early_exit else pd.DataFrame()
        temperature = localisation = None
        if early_exit and settings.temperature:
            split = stratified_split(
                predictions.targets, settings.calibration, settings.calibration_seed
            )
            temperature = scale_temperature(predictions.logits[0], predictions.targets, *split)
        if predictions.covered is not None and predictions.boxes is not None:
            localisation = Localisation(
                region=summarize(predictions.covered),
                random_windows=random_windows(
                    predictions.boxes, model.grid, model.region_size, model.image_size
                ),
            )
        source = str(cfg.ckpt_path)
        evaluation = Evaluation(
            checkpoint=printable(
                source if source.startswith((zoo.PREFIX, zoo.HUB)) else zoo.locate(source)
            ),
            method=record.method,
            backbone=record.backbone,
            reducer=record.reducer,
            image_size=record.image_size,
            preprocessing=record.preprocessing,
            seed=record.seed,
            data=next((Path(str(p)).name for p in paths if p), dataset.__name__),
            precision=str(trainer.precision),
            images=len(table),
            skipped_images=data.num_skipped,
            total_images=getattr(data.val_images, "num_total", len(data.val_images)),
            unseen=data.trained_on,
            passes=pass_results(predictions, by_image),
            curve=curve.to_dict("records"),
            operating_points=operating_points(table, macs, settings).to_dict("records"),
            temperature=temperature,
            localisation=localisation,
            settings=settings,
            environment=environment(),
        )
        log_summary(loggers, evaluation_summary(evaluation))
        if is_main_process():
            save_predictions(table, run_dir / FILE)
            write_json(run_dir / "evaluate.json", evaluation.model_dump())
            write_classes(predictions, record, run_dir)
            if early_exit:
                if can_draw("evaluate.png is"):
                    from lfvit.results.plots import plot_evaluation

                    plot_evaluation(evaluation, run_dir / "evaluate.png")
                log_table(loggers, "threshold_curve", curve.to_dict("records"))
            log_predictions(loggers, model, data, record.threshold, cfg.logged_images)
            _print(evaluation, record.about_threshold)
            print(f"written to {run_dir}")
    return evaluation


def macs_on(model: Any, data: ImageDataModule) -> Tensor:
    """MACs of each pass by itself: (1, P), or (N, P) on some images if they depend on the image."""
    if not is_adaptive(model):
        return torch.tensor([pass_macs(model)], dtype=torch.float64)
    pixels = torch.stack([sample.pixels for sample in data.some_validation_samples(COST_IMAGES)])
    return macs_by_image(model, normalize(pixels, data.preprocessing).to(next(model.parameters())))


def write_classes(predictions: Predictions, record: CheckpointRecord, run_dir: Path) -> None:
    """per_class.csv and confusion_matrix.csv, at the record's threshold; .png of the latter."""
    classes, threshold = record.classes, record.threshold
    per_class(predictions, classes, threshold).to_csv(run_dir / TABLE, float_format="%.2f")
    matrix = confusion_matrix(predictions, classes, threshold)
    matrix.to_csv(run_dir / MATRIX)
    if len(classes) <= SHOWN and can_draw("confusion_matrix.png is"):
        from lfvit.results.plots import plot_confusion

        plot_confusion(matrix, run_dir / "confusion_matrix.png")


def _images(evaluation: Evaluation) -> str:
    """Which images were evaluated, in words."""
    total = f"{evaluation.images:,} of {evaluation.total_images:,} images of {evaluation.data}"
    skipped = f", {evaluation.skipped_images} unreadable" if evaluation.skipped_images else ""
    return f"{total}{skipped}{', which training never saw' if evaluation.unseen else ''}"


def _print(evaluation: Evaluation, about_threshold: str) -> None:
    """The operating points, and what they leave out, on the terminal."""
    points = evaluation.operating_points
    titles = {
        "rule": "operating point",
        "threshold": "threshold",
        "top1": "top-1 %",
        "exit_fraction": "early exit",
        "gmacs": "GMACs",
        "chosen_on": "chosen on",
    }
    formats = {"threshold": ".4g", "top1": ".2f", "exit_fraction": ".1%", "gmacs": ".3f"}
    caption = None
    if points[-1].chosen_on:
        caption = (
            f"A threshold chosen on some images is measured on the other {points[-1].images}, "
            f"where the last pass reaches {points[-1].reference_top1:.2f} %."
        )
    rows = [point.model_dump() for point in points]
    print_table(rows, formats, titles, title=_images(evaluation), caption=caption)
    if (std := evaluation.passes[-1].gmacs_std) is not None:
        print(
            f"GMACs depend on the image: mean of {COST_IMAGES} images or all, standard deviation "
            f"{std:.3g}"
        )
    if len(evaluation.passes) > 1:
        print(about_threshold)
        point, reference = evaluation.configured, points[len(evaluation.passes) - 1]
        kept = next((point for point in points if point.rule.startswith("max_loss")), point)
        print(advise(*(point.model_dump() for point in (point, kept, reference))))
    for point in points:
        if point.reason is not None:
            print(f"{point.rule}: {point.reason}")
    if (scaling := evaluation.temperature) is not None and scaling.after is not None:
        print(
            f"temperature {scaling.temperature:.3f} takes the first pass's calibration error from "
            f"{scaling.before.ece:.2f} to {scaling.after.ece:.2f} points"
        )
    if (found := evaluation.localisation) is not None:
        print(
            f"the region covers {found.region.covered:.1%} of the object (random windows: "
            f"{found.random_windows.covered:.1%}), all of it in {found.region.whole:.1%} of the "
            f"images ({found.random_windows.whole:.1%})"
        )

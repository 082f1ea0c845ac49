"""`evaluate(cfg)`: accuracy and cost of every pass and every threshold of a trained model."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lfvit.commands.precision import check_precisions, compared_precisions, precision_table
from lfvit.data import ImageDataModule
from lfvit.errors import ConfigError
from lfvit.measure.calibration import Calibration, RiskSettings
from lfvit.measure.costs import count_macs, trace_macs
from lfvit.measure.evaluation import collect, results
from lfvit.measure.predictions import FILE, save_predictions
from lfvit.results.plots import plot_evaluation
from lfvit.runs.devices import prediction_trainer
from lfvit.runs.directory import start_run
from lfvit.runs.provenance import environment
from lfvit.runs.setup import Trained, load_trained, model_overrides, open_data
from lfvit.tracking.loggers import summarise, tracked
from lfvit.tracking.media import log_image, log_predictions, log_table
from lfvit.tracking.summaries import evaluation_summary
from lfvit.utils.atomic_io import write_json
from lfvit.utils.distributed import is_main_process
from lfvit.utils.validation import check_names, check_whole, plain


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as configured; writes evaluate.json, predictions.parquet with the answer to every
    image and, for a two-pass model, evaluate.png.

    Returns:
        The contents of evaluate.json.

    Raises:
        LFViTError: anything the user can mend.
    """
    calibration = _calibration(cfg)
    if isinstance(plain(cfg.trainer).get("strategy"), dict):
        raise ConfigError("an evaluation keeps the whole model on every device; use trainer=ddp")
    check_whole("logged_images", cfg.logged_images, 0)
    check_precisions(cfg)
    model, record = load_trained(cfg.ckpt_path, model_overrides(cfg))
    data = open_data(cfg, record)
    run_dir = start_run(cfg)
    with tracked(cfg, "evaluate", record) as loggers:
        found = _evaluate(cfg, calibration, Trained(model, record), data, run_dir)
        summarise(loggers, evaluation_summary(found))
        if is_main_process():
            _show(loggers, cfg, Trained(model, record), data, found, run_dir)
    if is_main_process():
        _print(found, run_dir)
    return found


def _evaluate(
    cfg: DictConfig,
    calibration: Calibration,
    trained: Trained,
    data: ImageDataModule,
    run_dir: Path,
) -> dict[str, Any]:
    """The contents of evaluate.json, written; the same in every process."""
    model, record = trained
    if cfg.verify_macs:
        _verify_macs(model, record["image_size"])
    trainer = prediction_trainer(cfg, run_dir)
    outputs = collect(trainer, model, data, record.get("seed", 0))
    found = {
        "checkpoint": str(cfg.ckpt_path),
        "method": record["method"],
        "backbone": record["backbone"],
        "reducer": record.get("reducer") or {"name": "none"},
        "image_size": record["image_size"],
        "data": type(data).__name__,
        **results(
            model,
            outputs,
            threshold=record["threshold"],
            calibration=calibration,
        ),
        "unreadable_images": data.num_skipped,
        "macs_counter": "closed form" + (", equal to fvcore" if cfg.verify_macs else ""),
        "precision": str(trainer.precision),
        "compared_precisions": compared_precisions(cfg, trained, data, run_dir),
        "environment": environment(),
    }
    if is_main_process():
        save_predictions(outputs, data, run_dir / FILE)
        write_json(run_dir / "evaluate.json", found)
        if found["curve"]:
            plot_evaluation(found, run_dir / "evaluate.png")
    return found


def _show(
    loggers: list[Logger],
    cfg: DictConfig,
    trained: Trained,
    data: ImageDataModule,
    found: dict[str, Any],
    run_dir: Path,
) -> None:
    """What loggers can show of an evaluation beside its numbers."""
    if found["curve"]:
        log_table(loggers, "threshold_curve", found["curve"], plot=("gmacs", "top1"))
        log_image(loggers, "evaluation", run_dir / "evaluate.png")
    threshold = trained.record["threshold"]
    log_predictions(loggers, trained.model, data, threshold, cfg.logged_images)


def _verify_macs(model: Any, image_size: int) -> None:
    formula, traced = count_macs(model), trace_macs(model, image_size)
    if formula != traced:
        raise ConfigError(
            f"the closed formula counts {formula:.0f} MACs, fvcore {traced:.0f}: one of them does "
            "not know a part of this model; verify_macs=false goes on with the formula"
        )


def _calibration(cfg: DictConfig) -> Calibration:
    """The settings of the thresholds to choose, checked."""
    risk = plain(cfg.risk)
    if risk is not None:
        if not isinstance(risk, dict):
            raise ConfigError(f"risk={risk!r} must be null, or risk.losses, risk.eps, risk.delta")
        check_names("risk", risk, [option.name for option in fields(RiskSettings)])
        lists = ("losses", "eps")  # of which one is often enough
        risk = {k: [v] if k in lists and not isinstance(v, list) else v for k, v in risk.items()}
    names = [option.name for option in fields(Calibration)]
    own = {"share": cfg.calibration, "seed": cfg.calibration_seed}
    own["risk"] = None if risk is None else RiskSettings(**risk)
    return Calibration(**own, **{name: cfg[name] for name in names if name not in own})


def _print(found: dict[str, Any], run_dir: Path) -> None:
    console = Console(markup=False)
    table = Table(title=f"{found['images']} images")
    for name in ("", "eta", "top-1 %", "top-5 %", "GMACs", "exit %"):
        table.add_column(name, justify="left" if not name else "right")
    for row in _rows(found):
        table.add_row(*row)
    if found["second"] is None:
        console.print(table)
    else:
        parts = found["calibration"]
        table.caption = (
            f"* chosen on {parts['calibration_images']} images, reported on the other "
            f"{parts['reported_images']}, where both passes reach "
            f"{parts['both_passes']['reported']['top1']:.2f} %"
        )
        console.print(table)
        for line in _notes(parts):
            console.print(line, soft_wrap=True)
    if "localisation" in found:
        ours, chance = (found["localisation"][k] for k in ("region", "random_windows"))
        console.print(
            f"the region covers {100 * ours['covered']:.1f} % of the object "
            f"(random windows: {100 * chance['covered']:.1f} %), all of it in "
            f"{100 * ours['whole']:.1f} % of the images ({100 * chance['whole']:.1f} %)"
        )
    for compared in found["compared_precisions"]:
        console.print(precision_table(compared))
    console.print(f"written to {run_dir}", soft_wrap=True)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The table: passes and the threshold of the model, then what was chosen."""

    def row(name: str, point: dict[str, Any]) -> tuple[str, ...]:
        eta, top5, exits = (point.get(key) for key in ("threshold", "top5", "exit_fraction"))
        return (
            name,
            "" if eta is None else f"{eta:.4f}".removesuffix("00"),
            f"{point['top1']:.2f}",
            "" if top5 is None else f"{top5:.2f}",
            f"{point['gmacs']:.3f}",
            "" if exits is None else f"{100 * exits:.1f}",
        )

    if found["second"] is None:
        yield row("one pass", found["first"])
        return
    yield row("first pass", found["first"])
    yield row("both passes", found["second"])
    yield row("early exit", found["operating_point"])
    parts = found["calibration"]
    chosen = [(f"{rule['name']}={rule['value']:g}", rule) for rule in parts["rules"]]
    if parts["risk"] is not None:
        certificates = parts["risk"]["certificates"]
        chosen += [(f"{c['loss']} risk <= {c['eps']:g}", c) for c in certificates]
    for name, choice in chosen:
        if choice["reported"] is None:
            yield name, "none", "", "", "", ""
        else:
            yield row(f"{name} *", choice["reported"])


def _notes(parts: dict[str, Any]) -> Iterator[str]:
    """What the table has no room for."""
    for rule in parts["rules"]:
        if rule["threshold"] is None:
            yield f"{rule['name']}={rule['value']:g}: {rule['outcome']}"
    if parts["risk"] is not None and parts["risk"]["certificates"]:
        certificates = parts["risk"]["certificates"]
        yield (
            f"risk: each bound holds with probability {1 - parts['risk']['delta']:g} over the draw "
            f"of the {parts['calibration_images']} calibration images"
        )
        lacking = {c["eps"]: c["outcome"] for c in certificates if c["threshold"] is None}
        for eps, outcome in lacking.items():
            yield f"risk <= {eps:g}: {outcome}"
    scaling = parts["temperature"]
    if scaling is not None and scaling["temperature"] is None:
        yield f"temperature: {scaling['outcome']}"
    elif scaling is not None:
        before, after = (scaling["reported"][when]["ece"] for when in ("before", "after"))
        yield (
            f"temperature {scaling['temperature']:.3f} takes the first pass's calibration error "
            f"from {before:.2f} to {after:.2f} points"
        )

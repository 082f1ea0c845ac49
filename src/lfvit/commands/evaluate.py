"""`evaluate(cfg)`: accuracy and cost of every pass and every threshold of a trained model."""

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lfvit.checks import check_range, check_whole
from lfvit.commands.setup import (
    check_one_device,
    load_trained,
    model_overrides,
    open_data,
    prediction_trainer,
)
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs, trace_macs
from lfvit.measure.evaluation import Collector, join, results
from lfvit.report.plots import plot_evaluation
from lfvit.runs import environment, start_run, write_json


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as configured; writes evaluate.json and, for a two-pass model, evaluate.png.

    Returns:
        The contents of evaluate.json.

    Raises:
        LFViTError: anything the user can mend.
    """
    check_range("calibration", cfg.calibration, 0, 1, above=True, below=True)
    check_range("max_loss", cfg.max_loss, 0, 100)
    check_whole("calibration_seed", cfg.calibration_seed, 0)
    check_one_device(cfg)
    model, record = load_trained(cfg.ckpt_path, model_overrides(cfg))
    data = open_data(cfg, record)
    run_dir = start_run(cfg)
    if cfg.verify_macs:
        _verify_macs(model, record["image_size"])
    L.seed_everything(record.get("seed", 0), verbose=False)
    trainer = prediction_trainer(cfg, run_dir)
    batches: Any = trainer.predict(Collector(model), datamodule=data)
    outputs = join([batch for batch in batches if batch is not None])
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
            calibration=cfg.calibration,
            seed=cfg.calibration_seed,
            max_loss=cfg.max_loss,
        ),
        "unreadable_images": len(data.unreadable),
        "macs_counter": "closed form" + (", equal to fvcore" if cfg.verify_macs else ""),
        "precision": str(trainer.precision),
        "environment": environment(),
    }
    write_json(run_dir / "evaluate.json", found)
    if found["curve"]:
        plot_evaluation(found, run_dir / "evaluate.png")
    _print(found, run_dir)
    return found


def _verify_macs(model: Any, image_size: int) -> None:
    formula, traced = count_macs(model), trace_macs(model, image_size)
    if formula != traced:
        raise ConfigError(
            f"the closed formula counts {formula:.0f} MACs, fvcore {traced:.0f}: one of them does "
            "not know a part of this model; verify_macs=false goes on with the formula"
        )


def _print(found: dict[str, Any], run_dir: Path) -> None:
    table = Table(title=f"{found['images']} images")
    for name in ("", "top-1 %", "top-5 %", "GMACs", "exit %"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, point: dict[str, Any]) -> None:
        top5, exits = point.get("top5"), point.get("exit_fraction")
        table.add_row(
            name,
            f"{point['top1']:.2f}",
            "" if top5 is None else f"{top5:.2f}",
            f"{point['gmacs']:.3f}",
            "" if exits is None else f"{100 * exits:.1f}",
        )

    row("one pass" if found["second"] is None else "first pass", found["first"])
    if found["second"] is not None:
        row("both passes", found["second"])
        point, chosen = found["operating_point"], found["calibrated"]
        row(f"early exit, eta={point['threshold']:.2f}", point)
        row(f"calibrated, eta={chosen['threshold']:.2f} *", chosen)
        table.caption = (
            f"* {chosen['rule']}, {chosen['calibration_images']} images; reported on the other "
            f"{chosen['reported_images']}, where both passes reach {chosen['second_top1']:.2f} %"
        )
    console = Console()
    console.print(table)
    if "localisation" in found:
        ours, chance = (found["localisation"][k] for k in ("region", "random_windows"))
        console.print(
            f"the region covers {100 * ours['covered']:.1f} % of the object "
            f"(random windows: {100 * chance['covered']:.1f} %), all of it in "
            f"{100 * ours['whole']:.1f} % of the images ({100 * chance['whole']:.1f} %)"
        )
    console.print(f"written to {run_dir}", soft_wrap=True)

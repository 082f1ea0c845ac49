"""`compare_precisions` of evaluate.py: the same weights and images in several precisions."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from lfvit.data import ImageDataModule
from lfvit.errors import ConfigError
from lfvit.measure.costs import count_macs
from lfvit.measure.evaluation import Outputs, collect
from lfvit.measure.precision import PRECISIONS, REFERENCE, compare
from lfvit.models.two_pass import TwoPassViT
from lfvit.runs.devices import prediction_trainer
from lfvit.runs.setup import Trained
from lfvit.utils.validation import check_choice, plain


def check_precisions(cfg: DictConfig) -> list[str]:
    """The precisions that were asked for.

    Raises:
        ConfigError: one that cannot be compared.
    """
    asked = plain(cfg.compare_precisions) or []
    asked = [asked] if isinstance(asked, str) else asked
    for name in asked:
        check_choice("compare_precisions", name, PRECISIONS)
    return asked


def compared_precisions(
    cfg: DictConfig, trained: Trained, data: ImageDataModule, run_dir: Path
) -> list[dict[str, Any]]:
    """What changes against float32 in every precision that was asked for, see `compare`.

    Raises:
        ConfigError: this device does not compute in one of them.
    """
    asked, model = check_precisions(cfg), trained.model
    outputs: dict[str, Outputs] = {}
    for name in (REFERENCE, *asked) if asked else ():
        trainer = prediction_trainer(cfg, run_dir, name)
        if trainer.precision != name:
            raise ConfigError(
                f"compare_precisions={name}: this device computes in {trainer.precision} instead; "
                "leave it out, or use a GPU"
            )
        # in a copy: some precisions convert the weights
        outputs[name] = collect(trainer, deepcopy(model), data, trained.record.get("seed", 0))
    macs = (0.0, 0.0)
    if isinstance(model, TwoPassViT):
        macs = count_macs(model, "first"), count_macs(model, "second")
    threshold = trained.record["threshold"]
    return [
        {
            "precision": name,
            "reference": REFERENCE,
            **compare(outputs[REFERENCE], outputs[name], macs, threshold),
        }
        for name in asked
    ]


def precision_table(compared: dict[str, Any]) -> Table:
    """One precision against float32."""
    table = Table(title=f"{compared['precision']} against {compared['reference']}")
    for name in ("", "top-1 %", "instead of", "same answers %", "probabilities", "confidences"):
        table.add_column(name, justify="left" if not name else "right")
    for part in ("first", "second"):
        found = compared[part]
        if found is None:
            continue
        name = f"{part} pass" if compared["second"] else "one pass"
        shares = (found["top1"], found["reference_top1"], 100 * found["same_answers"])
        differences = [
            f"{found[key]['mean']:.1e}, at most {found[key]['max']:.1e}"
            for key in ("probability", "confidence")
        ]
        table.add_row(name, *(f"{share:.2f}" for share in shares), *differences)
    if compared["second"]:
        table.caption = (
            f"the same region for {100 * compared['same_regions']:.2f} % of the images, the same "
            f"side of the threshold for {100 * compared['same_exits']:.2f} %; over all thresholds "
            f"top-1 differs by at most {compared['curve']['top1']:.2f} points, exits by "
            f"{100 * compared['curve']['exit_fraction']:.2f} %"
        )
    return table

"""`reproduce(cfg)`: train and evaluate a few models, and put them in one table and plot."""

import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig
from rich.console import Console
from rich.markdown import Markdown

from lfvit.commands.evaluate import evaluate
from lfvit.commands.predict import look_at
from lfvit.commands.setup import load_trained
from lfvit.commands.train import train
from lfvit.data.batches import as_pixels
from lfvit.data.needle import NeedleSet
from lfvit.errors import ConfigError
from lfvit.report.pictures import save_looks
from lfvit.report.plots import plot_comparison
from lfvit.report.tables import comparison_rows, markdown_table
from lfvit.runs import environment, plain


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Run what is not done yet, then write table.md, table.csv, accuracy_vs_gmacs and examples.

    Returns:
        Run name -> contents of its evaluate.json.
    """
    out = Path(cfg.output_dir)
    console = Console()
    found = {}
    for number, (name, overrides) in enumerate(cfg.runs.items(), start=1):
        run_dir = out / name
        console.rule(f"{number} of {len(cfg.runs)}: {name}")
        found[name] = _run_once(run_dir, [*overrides, *cfg.overrides], cfg.fresh, console)
    rows = comparison_rows(found)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    about = environment()
    text = "\n\n".join(
        [
            "# Accuracy against cost on the needle set",
            markdown_table(rows),
            *_localisation(found),
            f"`{about['command']}`, commit {about['commit']}, {about['machine']}. "
            "Generated images: this shows that the pipeline works; claims are made on photographs.",
        ]
    )
    (out / "table.md").write_text(text + "\n")
    plot_comparison(found, [out / f"accuracy_vs_gmacs.{kind}" for kind in ("png", "svg")])
    _draw_examples(next(iter(found.values()))["checkpoint"], cfg.examples, out / "examples.png")
    console.print(Markdown(text))
    console.print(f"written to {out}: table.md, table.csv, accuracy_vs_gmacs.png, examples.png")
    return found


def _run_once(run_dir: Path, overrides: list[str], fresh: bool, console: Console) -> dict[str, Any]:
    """Train and evaluate into run_dir, as far as that is not done already with these settings."""
    cfg = compose("train", overrides)
    cfg.run_dir = str(run_dir)
    settings = json.dumps(plain(cfg), indent=2)
    asked, result = run_dir / "settings.json", run_dir / "evaluation" / "evaluate.json"
    if fresh and asked.exists():
        shutil.rmtree(run_dir)
    if run_dir.exists() and (not asked.exists() or asked.read_text() != settings):
        raise ConfigError(
            f"{run_dir} holds something else than this run; pass another output_dir, or fresh=true "
            "to repeat a run of other settings in its place"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    asked.write_text(settings)
    if result.exists():
        console.print(f"already done: {result}")
        return json.loads(result.read_text())
    last = run_dir / "checkpoints" / "last.ckpt"
    if not (run_dir / "metrics.json").exists():
        cfg.ckpt_path = str(last) if last.exists() else None
        started = time.monotonic()
        train(cfg)
        console.print(f"trained in {time.monotonic() - started:.0f} s")
    evaluation = compose("evaluate")
    evaluation.ckpt_path, evaluation.run_dir = str(last), str(result.parent)
    return evaluate(evaluation)


def _localisation(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, result in found.items():
        if "localisation" in result:
            ours, chance = (result["localisation"][k] for k in ("region", "random_windows"))
            lines.append(
                f"{name}'s region holds the whole object in {100 * ours['whole']:.1f} % of the "
                f"images; a random window in {100 * chance['whole']:.1f} %."
            )
    return lines


def _draw_examples(checkpoint: str, count: int, path: Path) -> None:
    """Validation images with the model's looks: half that exit, half that do not, if there are."""
    trained = load_trained(checkpoint)
    settings = trained.record["data"]
    images = NeedleSet(
        settings["val_images"],
        image_size=trained.record["image_size"],
        num_classes=settings["num_classes"],
        split="val",
        seed=settings["seed"],
    )
    looks = []
    for index in range(min(100, len(images))):
        image, _, box = images.draw(index)
        _, look = look_at(trained, as_pixels(image), top=1)
        looks.append(look._replace(box=box))
    early = [look for look in looks if look.exited]
    late = [look for look in looks if not look.exited]
    few = early[: count // 2]
    save_looks(few + late[: count - len(few)], path)

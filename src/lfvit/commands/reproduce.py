"""`reproduce(cfg)`: train and evaluate a few models, and put them in one table and plot."""

import csv
import hashlib
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.markdown import Markdown

from lfvit.checks import check_names, check_whole
from lfvit.commands.evaluate import evaluate
from lfvit.commands.predict import look_at
from lfvit.commands.setup import (
    Trained,
    build_model,
    find_device,
    load_trained,
    make_record,
    model_overrides,
    open_data,
    overridden,
)
from lfvit.commands.train import check, train
from lfvit.data import NeedleDataModule
from lfvit.data.batches import Sample
from lfvit.data.datamodule import normalise
from lfvit.errors import ConfigError
from lfvit.measure.throughput import spread, time_interleaved
from lfvit.models.two_stage import TwoStageViT
from lfvit.report.pictures import save_looks
from lfvit.report.plots import plot_comparison
from lfvit.report.tables import comparison_rows, markdown_table
from lfvit.runs import environment, plain


class Step(NamedTuple):
    """One run of the comparison.

    train: the composed training config; None evaluates the weights it starts from.
    evaluate: overrides of the evaluation. start: name of the run whose weights it starts from.
    """

    train: DictConfig | None
    evaluate: list[str]
    start: str | None


def reproduce(cfg: DictConfig) -> dict[str, Any]:
    """Run what is not done yet, then write table.md, table.csv, accuracy_vs_gmacs and examples.

    Every setting of every run is checked before the first one starts.

    Returns:
        Run name -> contents of its evaluate.json.
    """
    check_whole("speed_images", cfg.speed_images, 0)
    check_whole("speed_repeats", cfg.speed_repeats, 1)
    out = Path(cfg.output_dir)
    console = Console()
    steps = {name: _step(cfg, name, out) for name in cfg.runs}
    for step in steps.values():
        _check_evaluation(step, steps)
    found: dict[str, Any] = {}
    for name in _in_order(steps):
        console.rule(f"{len(found) + 1} of {len(steps)}: {name}")
        found[name] = _run_once(name, steps, out, cfg.fresh, console)
    found = {name: found[name] for name in steps}
    rows = comparison_rows(found)
    if cfg.speed_images:
        console.rule("timing")
        _add_speed(rows, found, cfg)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    generated = next(iter(found.values()))["data"] == NeedleDataModule.__name__
    text = "\n\n".join(
        [
            "# Accuracy against cost",
            markdown_table(rows),
            *_localisation(found),
            *_remarks(steps, cfg, generated),
        ]
    )
    (out / "table.md").write_text(text + "\n")
    plot_comparison(found, [out / f"accuracy_vs_gmacs.{kind}" for kind in ("png", "svg")])
    written = ["table.md", "table.csv", "accuracy_vs_gmacs.png"]
    two_pass = [result for result in found.values() if result["second"] is not None]
    if two_pass and cfg.examples:
        _draw_examples(_reload(two_pass[0]), cfg.examples, out / "examples.png")
        written.append("examples.png")
    console.print(Markdown(text))
    console.print(f"written to {out}: {', '.join(written)}")
    return found


def _step(cfg: DictConfig, name: str, out: Path) -> Step:
    """One entry of ``runs``, composed and checked."""
    entry = plain(cfg.runs[name])
    check_names(f"runs.{name}", entry, ["train", "evaluate", "start"])
    start = entry.get("start")
    trained = [other for other in cfg.runs if "train" in cfg.runs[other]]
    if start is not None and start not in trained:
        raise ConfigError(
            f"runs.{name}.start={start!r} trains no weights; valid: {', '.join(trained)}"
        )
    if "train" not in entry:
        if start is None:
            raise ConfigError(f"runs.{name} needs train, or start and evaluate")
        return Step(None, entry.get("evaluate", []), start)
    overrides = [f"experiment={cfg.experiment}", *entry["train"], *cfg.overrides]
    run = compose("train", overrides)
    for group in ("data", "augment"):
        if cfg.get(group) is not None:
            with open_dict(run):  # its references to image_size and seed are to those of the run
                run[group] = OmegaConf.create(OmegaConf.to_container(cfg[group], resolve=False))
    run.run_dir = str(out / name)
    if start is not None:
        run.init_from = str(_checkpoint(out, start))
    check(run, weights_exist=start is None)
    return Step(run, entry.get("evaluate", []), start)


def _check_evaluation(step: Step, steps: dict[str, Step]) -> None:
    """Build what is going to be evaluated, while nothing has been trained."""
    trained: Any = steps[step.start or ""].train if step.train is None else step.train
    evaluation = compose("evaluate", step.evaluate)
    build_model(overridden(make_record(trained, []), model_overrides(evaluation)), num_classes=2)


def _in_order(steps: dict[str, Step]) -> list[str]:
    """Run names, each after the one it starts from."""
    order: list[str] = []
    while len(order) < len(steps):
        ready = [n for n, s in steps.items() if n not in order and s.start in (None, *order)]
        if not ready:
            raise ConfigError(f"runs: {', '.join(set(steps) - set(order))} start from each other")
        order += ready
    return order


def _run_once(
    name: str, steps: dict[str, Step], out: Path, fresh: bool, console: Console
) -> dict[str, Any]:
    """Train and evaluate into out/name, as far as that is not done already with these settings.

    What started from weights that are not there any more is done again.
    """
    step, run_dir = steps[name], out / name
    settings = json.dumps([plain(step.train), step.evaluate, step.start], indent=2)
    asked, result = run_dir / "settings.json", run_dir / "evaluation" / "evaluate.json"
    if fresh and asked.exists():
        shutil.rmtree(run_dir)
    if run_dir.exists() and (not asked.exists() or asked.read_text() != settings):
        raise ConfigError(
            f"{run_dir} holds something else than this run; pass another output_dir, or fresh=true "
            "to repeat a run of other settings in its place"
        )
    origin, weights = run_dir / "start.sha256", _digest(out, step.start)
    if origin.exists() and origin.read_text() != weights:
        console.print(f"{step.start} was trained again since: {name} is repeated")
        shutil.rmtree(run_dir)
    if not run_dir.exists():
        run_dir.mkdir(parents=True)
        if weights is not None:
            origin.write_text(weights)
    asked.write_text(settings)
    if result.exists():
        console.print(f"already done: {result}")
        return json.loads(result.read_text())
    if step.train is not None and not (run_dir / "metrics.json").exists():
        last = _checkpoint(out, name)
        if last.exists():
            step.train.ckpt_path, step.train.init_from = str(last), None
        started = time.monotonic()
        train(step.train)
        console.print(f"trained in {time.monotonic() - started:.0f} s")
    evaluation = compose("evaluate", step.evaluate)
    weights_of = name if step.train is not None else step.start or name
    evaluation.ckpt_path = str(_checkpoint(out, weights_of))
    evaluation.run_dir = str(result.parent)
    return evaluate(evaluation)


def _checkpoint(out: Path, name: str) -> Path:
    return out / name / "checkpoints" / "last.ckpt"


def _digest(out: Path, start: str | None) -> str | None:
    """Of the weights a run starts from; None where it starts from none."""
    if start is None:
        return None
    with _checkpoint(out, start).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add_speed(rows: list[dict[str, Any]], found: dict[str, Any], cfg: DictConfig) -> None:
    """Images per second of every row: all take turns on the same validation images."""
    device = find_device("auto")
    models = {name: _reload(result) for name, result in found.items()}
    samples = _some_samples(next(iter(models.values())), cfg.speed_images)
    images = normalise(torch.stack([sample.pixels for sample in samples])).to(device)
    cases: dict[str, Any] = {}
    for number, row in enumerate(rows):
        model: Any = models[row["model"]].model.to(device)
        if isinstance(model, TwoStageViT):
            threshold = {"first pass alone": 0.0, "both passes": 2.0}.get(row["run"])
            threshold = row["threshold"] if threshold is None else threshold
            cases[str(number)] = partial(model.infer, images, threshold)
        else:
            cases[str(number)] = partial(model, images)
    seconds = time_interleaved(cases, warmup=2, repeats=cfg.speed_repeats, device=device)
    for number, row in enumerate(rows):
        row["images_per_second"] = len(images) / spread(seconds[str(number)])["median"]


def _reload(result: dict[str, Any]) -> Trained:
    """The model of an evaluation, as it was evaluated."""
    settings = {key: result[key] for key in ("method", "backbone", "reducer", "image_size")}
    return load_trained(result["checkpoint"], settings)


def _some_samples(trained: Trained, count: int) -> list[Sample]:
    """Some of the images a model was evaluated on."""
    return open_data(compose("evaluate"), trained.record).some_validation_samples(count)


def _remarks(steps: dict[str, Step], cfg: DictConfig, generated: bool) -> list[str]:
    """How each model came about, as far as it differs from training on random weights."""
    lines = []
    for name, step in steps.items():
        if step.train is None:
            how = f"the weights of {step.start} with {' '.join(step.evaluate)}, not trained further"
        elif step.start is not None:
            how = f"{_epochs(step.train)} from the weights of {step.start}"
        else:
            how = f"{_epochs(step.train)} from random weights"
        lines.append(f"- {name}: {how}")
    text = ["\n".join(lines)]
    if cfg.speed_images:
        text.append(
            f"Images per second: medians of {cfg.speed_repeats} passes over a batch of "
            f"{cfg.speed_images} validation images, all rows in turn, not compiled."
        )
    about = environment()
    origin = f"`{about['command']}`, commit {about['commit']}, {about['machine']}."
    if generated:
        origin += (
            " Generated images: this shows that the pipeline works; claims are made on photographs."
        )
    return [*text, origin]


def _epochs(run: DictConfig) -> str:
    count = run.schedule.epochs
    return f"{count} epoch{'s' if count > 1 else ''}"


def _localisation(found: dict[str, Any]) -> list[str]:
    """How often the second pass looks at the object, where the data knows where it is."""
    known = {name: r["localisation"] for name, r in found.items() if "localisation" in r}
    if not known:
        return []
    shares = [f"{name} {100 * parts['region']['whole']:.1f} %" for name, parts in known.items()]
    chance = next(iter(known.values()))["random_windows"]["whole"]
    return [
        "Images in which the second pass sees the whole object in full resolution: "
        f"{', '.join(shares)}; with a window anywhere {100 * chance:.1f} %."
    ]


def _draw_examples(trained: Trained, count: int, path: Path) -> None:
    """Validation images with the model's looks: half that exit, half that do not, if there are."""
    looks = []
    for sample in _some_samples(trained, 100):
        _, look = look_at(trained, sample.pixels, top=1)
        looks.append(look._replace(box=sample.box))
    early = [look for look in looks if look.exited]
    late = [look for look in looks if not look.exited]
    few = early[: count // 2]
    save_looks(few + late[: count - len(few)], path)

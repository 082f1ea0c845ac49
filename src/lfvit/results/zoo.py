"""The trained models of the repository, `zoo:NAME`: the list, the cards, and how a run is added.

A model is three files: NAME.safetensors, the weights in half precision with the checkpoint's
record; NAME.json, the card, with the content of evaluate.json; and NAME.md, made from it.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save_file
from torch import Tensor

from lfvit.errors import CheckpointError, ConfigError, LFViTError
from lfvit.measure.schemas import parse_evaluation
from lfvit.models import zoo
from lfvit.models.checkpoints import RECORD
from lfvit.results.collect import collect
from lfvit.results.provenance import without_paths
from lfvit.results.report import points_table
from lfvit.results.table import points_frame
from lfvit.runs.overrides import quote_path
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.runs.setup import load_trained
from lfvit.utils.atomic_io import write_json
from lfvit.utils.warning_filters import filter_warnings

TRAINING = ("epochs", "train_images", "parameters", "train_seconds", "machine")


def read_card(source: str | Path) -> dict[str, Any]:
    """NAME.json of `zoo:NAME`; empty for other files."""
    path = zoo.locate(source).with_suffix(".json")
    if not str(source).startswith(zoo.PREFIX) or not path.is_file():
        return {}
    return dict(json.loads(path.read_text()))


def add(
    run_dir: Path,
    name: str,
    *,
    data_root: str | None = None,
    data: str | None = None,
    remark: str = "",
    threshold: float | None = None,
) -> Path:
    """Convert, evaluate and describe a finished training; the first one becomes the default.

    The converted file, in half precision, is what the card's accuracy is of.

    Args:
        run_dir: of train.py.
        name: in the zoo, such as "lf_vit_imagenette".
        data_root: the images; None is where training read them.
        data: the images in words; None is the name of the data set.
        remark: a sentence for the card.
        threshold: eta that commands use where none is given; None is that of the training.

    Returns:
        The file of weights.

    Raises:
        ConfigError: an invalid name, or one that is taken.
        CheckpointError: not a finished training, weights that half precision cannot hold, or an
            evaluation that fails.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name) or name in (zoo.DEFAULT, *zoo.names()):
        raise ConfigError(
            f"--name {name!r} must be made of lower-case letters, digits and _, and be none of "
            f"{', '.join((zoo.DEFAULT, *zoo.names()))}"
        )
    if not (run_dir / "metrics.json").is_file():
        raise CheckpointError(f"{run_dir}: not a finished training, it has no metrics.json")
    trained = load_trained(run_dir / "checkpoints" / "last.ckpt", {"threshold": threshold})
    root = data_root or trained.record.data.get("root")
    record = _without_folders(trained.record.model_dump())
    zoo.FOLDER.mkdir(exist_ok=True)
    weights = zoo.FOLDER / f"{name}.safetensors"
    save_file(_in_half_precision(trained.model.state_dict()), weights, {RECORD: json.dumps(record)})
    try:
        _evaluate(weights, root, run_dir / "zoo")
    except BaseException:
        weights.unlink()
        raise
    (run,) = collect([run_dir / "zoo"]).runs
    evaluation = run.evaluation.model_dump(mode="json")
    command = f"python evaluate.py ckpt_path={zoo.PREFIX}{name}{' data.root=DIR' if root else ''}"
    card = {
        "name": name,
        "data": data or run.data,
        "remark": remark,
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "record": record,
        "training": {
            "command": without_paths(run.environment["command"]),
            **{key: run.environment[key] for key in ("commit", "packages")},
            "start": run.start,
            **{key: run.metrics[key] for key in TRAINING},
        },
        "evaluation": {
            **evaluation,
            "checkpoint": f"{zoo.PREFIX}{name}",
            "environment": {**evaluation["environment"], "command": command},
        },
    }
    write_json(weights.with_suffix(".json"), card)
    weights.with_suffix(".md").write_text(format_card(card))
    if zoo.default() is None:
        (zoo.FOLDER / zoo.DEFAULT).write_text(f"{name}\n")
    return weights


def format_card(card: Mapping[str, Any]) -> str:
    """NAME.md from the content of NAME.json."""
    template = Path(__file__).with_name("zoo_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    backbone = card["record"]["backbone"]
    return environment.from_string(template).render(
        **card,
        backbone=", ".join(f"{k} {v}" for k, v in backbone.items() if v is not None),
        table=points_table(points_frame(parse_evaluation(card["evaluation"], card["name"]))),
    )


def _without_folders(value: Any) -> Any:
    """A record without the folders of the machine it was trained on."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    return None if isinstance(value, str) and os.path.isabs(value) else value


def _in_half_precision(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point weights as float16, each with memory of its own."""
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    for key, value in halves.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{key} has values beyond 65504, which float16 cannot hold")
    return {key: value.clone().contiguous() for key, value in halves.items()}


def _evaluate(weights: Path, root: str | None, run_dir: Path) -> None:
    """Run evaluate.py as a user would."""
    settings = {"ckpt_path": weights, "hydra.run.dir": run_dir.resolve()}
    settings |= {"data.root": Path(root).expanduser().resolve()} if root else {}
    overrides = [quote_path(f"{key}={value}") for key, value in settings.items()]
    command = [sys.executable, str(PROJECT_ROOT / "evaluate.py"), *overrides]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CheckpointError(f"evaluate.py failed:\n{done.stderr.strip()}")


def main() -> None:
    filter_warnings()
    parser = argparse.ArgumentParser(prog="python -m lfvit.results.zoo", description="List models.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("cards", help="write every NAME.md from its NAME.json")
    adding = commands.add_parser("add", help="convert, evaluate and describe a finished training")
    adding.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    adding.add_argument("--name", required=True)
    adding.add_argument("--data-root", metavar="DIR", help="the images, where they have moved")
    adding.add_argument("--data", metavar="TEXT", help="the images in words")
    adding.add_argument("--remark", default="", metavar="TEXT", help="a sentence for the card")
    adding.add_argument("--threshold", type=float, metavar="ETA", help="used where none is given")
    options = vars(parser.parse_args())
    command = options.pop("command")
    cards = {name: read_card(f"{zoo.PREFIX}{name}") for name in zoo.names()}
    try:
        if command == "add":
            print(f"written: {add(**options)}, with its card beside it")
        elif command == "cards":
            for name, card in cards.items():
                (zoo.FOLDER / f"{name}.md").write_text(format_card(card))
        elif not cards:
            print(f"no models in {zoo.FOLDER}: python -m lfvit.results.zoo add RUN_DIR --name NAME")
        else:
            for name, card in cards.items():
                last = card["evaluation"]["passes"][-1]
                print(
                    f"zoo:{name}{' (default)' if name == zoo.default() else ''}: "
                    f"{card['record']['method']['name']}, {card['data']}, top-1 "
                    f"{last['top1']:.2f} %, {last['gmacs']:.3f} GMACs, {card['bytes'] / 1e6:.1f} MB"
                )
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

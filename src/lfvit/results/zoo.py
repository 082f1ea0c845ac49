"""Cards of the trained models of the repository, `zoo:NAME`, and how a run is added.

A model is three files: NAME.safetensors, the weights in half precision with the checkpoint's
record; NAME.json, the card, with the content of evaluate.json; and NAME.md, made from it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save_file

from lfvit.errors import CheckpointError, ConfigError
from lfvit.measure.schemas import parse_evaluation
from lfvit.models import zoo
from lfvit.models.checkpoints import RECORD
from lfvit.results.collect import collect
from lfvit.results.provenance import provenance
from lfvit.results.table import points_cells, points_frame
from lfvit.runs.configs import quote_path
from lfvit.runs.setup import load_trained
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import cells_to_markdown

COLUMNS = (
    *("rule", "threshold", "top1", "top5", "reference_top1", "exit_fraction", "consistency"),
    *("gmacs", "images"),
)
"""Of the operating points on a card."""


def read_card(source: str | Path) -> dict[str, Any]:
    """NAME.json of `zoo:NAME`; empty for other files."""
    path = zoo.locate(source).with_suffix(".json")
    return json.loads(path.read_text("utf-8")) if str(source).startswith(zoo.PREFIX) else {}


def add(
    run_dir: Path, name: str, data_root: str | None = None, threshold: float | None = None
) -> Path:
    """Convert a finished training, evaluate the converted file, and write its card.

    Args:
        run_dir: of train.py.
        name: in the zoo, such as "lf_vit_imagenette".
        data_root: the images; None is where training read them.
        threshold: eta that commands use where none is given; None is that of the training.

    Returns:
        The file of weights.

    Raises:
        ConfigError: an invalid name, or one that is taken.
        CheckpointError: not a training, weights beyond half precision, or evaluate.py fails.
    """
    taken = (zoo.DEFAULT, *zoo.names())
    if not re.fullmatch(r"[a-z0-9_]+", name) or name in taken:
        raise ConfigError(
            f"--name {name!r} must be made of lower-case letters, digits and _, and be none of "
            f"{', '.join(taken)}"
        )
    trained = load_trained(run_dir / "checkpoints" / "last.ckpt", {"threshold": threshold})
    weights = zoo.FOLDER / f"{name}.safetensors"
    state = trained.model.state_dict()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    if not all(torch.isfinite(value).all() for value in halves.values()):
        raise CheckpointError(f"{run_dir}: has weights beyond 65504, which float16 cannot hold")
    record = _without_folders(trained.record.model_dump())
    zoo.FOLDER.mkdir(exist_ok=True)
    save_file({k: v.clone() for k, v in halves.items()}, weights, {RECORD: json.dumps(record)})
    root = data_root or trained.record.data.get("root")
    settings = {"ckpt_path": weights, "hydra.run.dir": (run_dir / "zoo").resolve()}
    settings |= {"data.root": Path(root).expanduser().resolve()} if root else {}
    overrides = [quote_path(f"{key}={value}") for key, value in settings.items()]
    command = [sys.executable, "-m", "lfvit", "evaluate", *overrides]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        weights.unlink()
        raise CheckpointError(f"evaluate.py failed:\n{done.stderr.strip()}")
    (run,) = collect([run_dir / "zoo"]).runs
    evaluation = run.evaluation.model_dump()
    evaluation["checkpoint"] = f"{zoo.PREFIX}{name}"
    evaluation["environment"]["command"] = (
        f"python evaluate.py ckpt_path={zoo.PREFIX}{name}{' data.root=DIR' if root else ''}"
    )
    card = {
        "name": name,
        "data": run.data,
        "record": record,
        "training": provenance([run]),
        "evaluation": evaluation,
    }
    write_json(weights.with_suffix(".json"), card)
    weights.with_suffix(".md").write_text(format_card(card), "utf-8")
    if zoo.default() is None:
        (zoo.FOLDER / zoo.DEFAULT).write_text(f"{name}\n", "utf-8")
    return weights


def format_card(card: Mapping[str, Any]) -> str:
    """NAME.md from the content of NAME.json."""
    template = Path(__file__).with_name("zoo_card.md").read_text(encoding="utf-8")
    backbone = {k: v for k, v in card["record"]["backbone"].items() if v is not None}
    evaluation = parse_evaluation(card["evaluation"], card["name"])
    return jinja2.Template(template, trim_blocks=True, keep_trailing_newline=True).render(
        **card,
        backbone=", ".join(f"{key} {value}" for key, value in backbone.items()),
        table=cells_to_markdown(points_cells(points_frame(evaluation), COLUMNS)),
    )


def _without_folders(value: Any) -> Any:
    """A record without the folders of the machine it was trained on."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    return None if isinstance(value, str) and os.path.isabs(value) else value


def main(arguments: Sequence[str]) -> None:
    """``lfvit zoo``."""
    parser = argparse.ArgumentParser(
        prog="lfvit zoo", description="List the zoo, or add a training to it."
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", nargs="?")
    parser.add_argument("--name", default="")
    parser.add_argument("--data-root", metavar="DIR", help="the images, where they have moved")
    parser.add_argument("--threshold", type=float, metavar="ETA", help="used where none is given")
    options = parser.parse_args(arguments)
    if options.run_dir is None:
        print("\n".join(f"{zoo.PREFIX}{name}" for name in zoo.names()))
        return
    print(f"written: {add(**vars(options))}, with its card beside it")

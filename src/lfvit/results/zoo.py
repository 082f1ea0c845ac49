"""Cards of the trained models of the repository, `zoo:NAME`, and how a run is added.

A model is a folder as on the Hugging Face Hub, see `lfvit.results.hub`: model.safetensors, the
weights in half precision; config.json, the checkpoint's record; card.json, with the content of
evaluate.json; and README.md, made from it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import HfApi

from lfvit.errors import CheckpointError, ConfigError
from lfvit.measure.schemas import parse_evaluation
from lfvit.models import zoo
from lfvit.results.collect import collect
from lfvit.results.hub import Pretrained
from lfvit.results.provenance import provenance
from lfvit.results.table import points_cells, points_frame
from lfvit.runs.configs import quote_path
from lfvit.utils.atomic_io import write_json
from lfvit.utils.markdown import cells_to_markdown

COLUMNS = (
    *("rule", "threshold", "top1", "top5", "reference_top1", "exit_fraction", "consistency"),
    *("gmacs", "images"),
)
"""Of the operating points on a card."""


def read_card(source: str | Path) -> dict[str, Any]:
    """The card of ``zoo:NAME`` or ``hf:USER/REPO``, with the record; empty for other files."""
    if not str(source).startswith((zoo.PREFIX, zoo.HUB)):
        return {}
    path = zoo.locate(source).with_name(zoo.CARD)
    record = json.loads(path.with_name("config.json").read_text("utf-8"))
    return (json.loads(path.read_text("utf-8")) if path.is_file() else {}) | {"record": record}


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
        The folder.

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
    trained = Pretrained.from_checkpoint(run_dir / "checkpoints" / "last.ckpt", threshold)
    folder, root = zoo.FOLDER / name, data_root or trained.record.data.get("root")
    trained.model.half()
    if not all(value.isfinite().all() for value in trained.model.state_dict().values()):
        raise CheckpointError(f"{run_dir}: has weights beyond 65504, which float16 cannot hold")
    record = _without_folders(trained.record.model_dump())
    trained.record = type(trained.record)(**record)
    folder.mkdir(parents=True)
    trained._save_pretrained(folder)
    settings = {"ckpt_path": folder, "hydra.run.dir": (run_dir / "zoo").resolve()}
    settings |= {"data.root": Path(root).expanduser().resolve()} if root else {}
    overrides = [quote_path(f"{key}={value}") for key, value in settings.items()]
    command = [sys.executable, "-m", "lfvit", "evaluate", *overrides]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder)
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
        "training": provenance([run]),
        "evaluation": evaluation,
    }
    write_json(folder / zoo.CARD, card)
    (folder / "README.md").write_text(format_card({**card, "record": record}), "utf-8")
    if zoo.default() is None:
        (zoo.FOLDER / zoo.DEFAULT).write_text(f"{name}\n", "utf-8")
    return folder


def format_card(card: Mapping[str, Any]) -> str:
    """README.md from what `read_card` gives; without an evaluation, what the record says."""
    template = Path(__file__).with_name("zoo_card.md").read_text(encoding="utf-8")
    backbone = {k: v for k, v in card["record"]["backbone"].items() if v is not None}
    table = None
    if "evaluation" in card:
        points = points_frame(parse_evaluation(card["evaluation"], card["name"]))
        table = cells_to_markdown(points_cells(points, COLUMNS))
    return jinja2.Template(template, trim_blocks=True, keep_trailing_newline=True).render(
        **card,
        backbone=", ".join(f"{key} {value}" for key, value in backbone.items()),
        table=table,
    )


def push(name: str, repo: str) -> None:
    """Put the folder of a model of the zoo on the Hub, as it is; needs ``hf auth login``."""
    folder = zoo.locate(f"{zoo.PREFIX}{name}").parent
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # of names, rights and the network
        raise CheckpointError(
            f"{repo}: could not be sent ({str(error).strip().partition(chr(10))[0]}); "
            "hf auth login gives the right to write"
        ) from error
    print(f"sent {folder}; used as ckpt_path={zoo.HUB}{repo}")


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
    parser.add_argument("--push", metavar="USER/REPO", help="a model of the zoo, by --name")
    options = parser.parse_args(arguments)
    if options.push is not None:
        push(options.name, options.push)
        return
    del options.push
    if options.run_dir is None:
        print("\n".join(f"{zoo.PREFIX}{name}" for name in zoo.names()))
        return
    print(f"written: {add(**vars(options))}, with its card beside it")

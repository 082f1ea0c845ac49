"""Put a trained run into the zoo: convert its weights, evaluate the converted file, write its card.

The accuracy on the card is that of the file as users load it, in half precision.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import Tensor

from lfvit.commands.evaluate import evaluate
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.models import zoo
from lfvit.models.weight_files import RECORD
from lfvit.results import shapes
from lfvit.results.legacy import legacy
from lfvit.results.origins import start_of
from lfvit.results.zoo.cards import make_card, markdown, portable
from lfvit.runs.overrides import quote_path
from lfvit.runs.provenance import PROJECT_ROOT
from lfvit.runs.setup import load_trained
from lfvit.utils.atomic_io import read_json, write_json

LIMIT = 25_000_000  # bytes of all weights together: they are part of every clone


def add(
    run_dir: Path,
    name: str,
    *,
    data_root: str | None = None,
    data: str | None = None,
    remark: str = "",
    threshold: float | None = None,
    default: bool = False,
    replace: bool = False,
) -> Path:
    """Convert, evaluate and describe a finished training; the first one becomes the default.

    Args:
        run_dir: of train.py, with checkpoints/last.ckpt and metrics.json.
        name: in the zoo, such as "lf_vit_imagenette".
        data_root: the images; None is where training found them.
        data: the images in words; None is the name of their folder.
        remark: a sentence for the card.
        threshold: eta that commands use where none is given; None is that of the training.
        default: make it the default.
        replace: an earlier model of this name.

    Returns:
        The file of weights.

    Raises:
        ConfigError: a name that cannot be, or is taken; more than `LIMIT` bytes in all.
        CheckpointError: not a finished training, or weights that half precision cannot hold.
    """
    _check_name(name, replace)
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    training: dict[str, Any] = {
        key: read_json(run_dir / f"{key}.json") for key in ("metrics", "environment")
    }
    if not all(training.values()):
        raise CheckpointError(f"{run_dir}: not a finished training, it has no metrics.json")
    training["start"] = start_of(_load(run_dir / "config.yaml"), run_dir, _load)
    model, record = load_trained(checkpoint, {"threshold": threshold})
    own_root = record["data"].get("root")
    root = data_root or own_root
    if own_root is not None and not Path(str(root)).expanduser().is_dir():
        raise DataError(f"{root}: no such folder of images; pass --data-root DIR")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.safetensors"
        told = portable(record)
        save_file(_halved(model.state_dict(), name), file, {RECORD: json.dumps(told)})
        _check_size(file, name)
        evaluation = _evaluate(file, root if own_root is not None else None, Path(folder) / "run")
        words = data or (Path(str(root)).name if own_root is not None else "the needle set")
        card = make_card(name, file, told, training, evaluation, words, remark)
        zoo.FOLDER.mkdir(exist_ok=True)
        shutil.copyfile(file, zoo.FOLDER / file.name)
    write_json(zoo.FOLDER / f"{name}.json", card)
    (zoo.FOLDER / f"{name}.md").write_text(markdown(card))
    if default or zoo.default() is None:
        (zoo.FOLDER / zoo.DEFAULT).write_text(f"{name}\n")
    return zoo.FOLDER / f"{name}.safetensors"


def _load(path: Path) -> dict[str, Any]:
    return shapes.load(path) if path.is_file() else {}


def _check_name(name: str, replace: bool) -> None:
    if not re.fullmatch(r"[a-z0-9_]+", name) or name == zoo.DEFAULT:
        raise ConfigError(
            f"--name {name!r} must be made of lower-case letters, digits and _, and not be "
            f"{zoo.DEFAULT!r}"
        )
    if name in zoo.names() and not replace:
        raise ConfigError(f"--name {name}: is in the zoo already; pass --replace, or another name")


def _halved(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Floating-point weights as float16, each with memory of its own."""
    found = {}
    for key, value in weights.items():
        half = value.half() if value.is_floating_point() else value
        if not torch.isfinite(half).all():
            raise CheckpointError(
                f"{name}: {key} has values beyond 65504, which half precision cannot hold"
            )
        found[key] = half.clone().contiguous()
    return found


def _check_size(file: Path, name: str) -> None:
    others = [zoo.FOLDER / f"{n}.safetensors" for n in zoo.names() if n != name]
    total = sum(path.stat().st_size for path in [*others, file])
    if total > LIMIT:
        raise ConfigError(
            f"{name} has {file.stat().st_size / 1e6:.1f} MB, all weights together would have "
            f"{total / 1e6:.1f} of {LIMIT / 1e6:.0f}; add a smaller model, or remove one"
        )


def _evaluate(file: Path, root: str | None, run_dir: Path) -> dict[str, Any]:
    """The contents of evaluate.json for a file of weights, with the settings of a user."""
    overrides = [] if root is None else [quote_path(f"data.root={os.path.abspath(root)}")]
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", overrides)
        cfg.ckpt_path, cfg.run_dir = str(file), str(run_dir)
        return legacy(evaluate(cfg))

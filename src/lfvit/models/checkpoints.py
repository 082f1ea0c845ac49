"""Files of weights: read without executing anything from them, and loaded into models.

Accepted are this project's own files, timm/DeiT's, the released LF-, CF- and LV-ViT ones, and those
of other trainers that hold such weights under names of their own.
"""

import argparse
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lfvit.errors import CheckpointError
from lfvit.models.tokens import resample_pos_embed
from lfvit.models.zoo import locate

log = logging.getLogger(__name__)

RECORD = "lfvit"  # the entry of a file that describes its model; JSON in a .safetensors
ANCHORS = ("pos_embeds.0", "first_pos_embed", "patch_embed.proj.weight")
"""Of a cascade, of a two-pass model, of every ViT."""
AVERAGED = ("ema", "teacher")  # preferred where a file holds several models
HEADS = ("head.", "head_dist.", "aux_head.")
BODY = re.compile(  # what decides the features: unlike decoders and heads, it is never left out
    r"(backbone\.|backbones\.\d+\.)?(pos_embeds|blocks|patch_embed|norm|norm_pre|fc_norm|attn_pool|reuse|"
    r"(cls|reg|dist)_token|(first_|second_)?pos_embed)\b"
)
POS_EMBED = re.compile(r"(first_|second_)?pos_embed|pos_embeds\.\d+")
BLOCK = re.compile(r"(?:backbone\.|backbones\.\d+\.)?blocks\.(\d+)\.")
REDUCER = re.compile(r"^(blocks\.)?reducer\.")

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
PLAIN_VALUES: list[Any] = [  # what training scripts store beside their weights
    argparse.Namespace,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")),
    np.dtype,
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]

HINT = "; new_head=True keeps the model's own head"

LAST = re.compile(r"reuse\.mlp\.(fc2\.)?(weight|bias)")
"""The last layer of feature reuse."""

RELEASED_NAMES = {  # of the released two-pass files -> this project's
    r"^blocks\.reducer\.": "reducer.",
    r"^pos_embed_list\.0$": "first_pos_embed",
    r"^pos_embed_list\.1$": "second_pos_embed",
    r"^reuse_block\.0\.": "reuse.norm.",
    r"^reuse_block\.1\.": "reuse.mlp.",
    r"^((?:cls|reg)_token$)": r"backbone.\1",
    r"^((?:patch_embed|norm_pre|blocks|norm|head|aux_head)\.)": r"backbone.\1",
}


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a file of weights, or ``zoo:NAME``, without executing anything from it.

    Returns:
        Its entries: of a .safetensors the weights, and the record in its metadata if it has one.

    Raises:
        CheckpointError: missing, truncated, or not made of plain weights.
    """
    path = locate(path)
    if path.suffix == ".onnx" or (path / "model.onnx").is_file():
        raise CheckpointError(
            f"{path}: is an exported model, which python -m lfvit.runtime runs; pass the "
            "checkpoint it was made from"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}; pass the path of a .ckpt, .pth or .safetensors")
    _refuse_other_files(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path) | _read_record(path)
        with torch.serialization.safe_globals(PLAIN_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises many kinds for damaged files
        with path.open("rb") as file:
            pickled = file.read(1) in (b"\x80", b"P")  # or a zip of such
        if pickled and ("weights_only" in str(error).lower() or "Unsupported" in str(error)):
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise CheckpointError(
                f"{path}: holds more than weights ({code[1] if code else 'pickled code'}), and "
                "nothing from a file is executed; save its state_dict alone with "
                "torch.save(model.state_dict(), ...) where you trust it"
            ) from error
        raise CheckpointError(
            f"{path}: truncated or no file of weights ({type(error).__name__}); copy or download "
            "it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


def _refuse_other_files(path: Path) -> None:
    """What a download may leave in place of weights, and files that could fill the memory."""
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the weights; run git lfs pull where it came from"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"{path}: is a web page, not weights; download the file itself: its link has /resolve/ "
            "or /raw/ in place of /blob/, and may ask for a login"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [i.filename for i in archive.infolist() if i.compress_type]
    except Exception:  # another format, or damaged in one of many ways: reading it will tell
        return
    if compressed:  # a small file of many values
        raise CheckpointError(
            f"{path}: holds compressed entries ({compressed[0]}), which PyTorch never writes"
        )


def _read_record(path: Path) -> dict[str, Any]:
    """The record in the metadata of a .safetensors file, under `RECORD`; empty without one."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(RECORD, "{}")
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its metadata {RECORD!r} is no JSON mapping")
    return {RECORD: record} if record else {}


def extract_weights(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The named tensors of a file's model, under the model's own names.

    What stands before the names of its patch embedding is left out: entries of the file
    (``state_dict``, ``model_ema``) and prefixes (``module.``, ``net.``, ``encoder.``). Of several
    models the averaged one is taken, such as the teacher beside a student. Half precision becomes
    float32, in which resampling is exact.

    Args:
        content: entries of a file, or a state dict.
        name: of the file, for messages.

    Raises:
        CheckpointError: no tensors, or tensors that do not hold their values.
    """
    groups = list(_tensor_groups(content))
    if not groups:
        raise CheckpointError(
            f"{name}: no weights found; its entries are {', '.join(map(str, list(content)[:5]))}"
        )
    models: list[tuple[str, str, dict[str, Tensor]]] = []
    for anchor in ANCHORS:
        models = models or [
            (f"{entry}{key.removesuffix(anchor)}", key.removesuffix(anchor), tensors)
            for entry, tensors in groups
            for key in tensors
            if key == anchor or key.endswith(f".{anchor}")
        ]
    weights = max((tensors for _, tensors in groups), key=len)  # the first of equally many
    if models:
        place, prefix, tensors = models[0]
        if len(models) > 1 and RECORD not in content:  # in this project's the first is the average
            averaged = (m for m in models if any(word in m[0] for word in AVERAGED))
            place, prefix, tensors = next(averaged, models[0])
            log.info("%s: holds several models; %s is used", name, place.removesuffix("."))
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for key, value in weights.items():
        dense = value.layout == torch.strided and value.device.type != "meta"
        # a view can claim any number of values with one in memory
        if not dense or value.numel() > value.untyped_storage().nbytes() // value.element_size():
            raise CheckpointError(
                f"{name}: {key} claims {tuple(value.shape)} values without holding them; save the "
                "weights as plain, contiguous tensors"
            )
        if value.dtype in (torch.float16, torch.bfloat16):
            weights[key] = value.float()
    return weights


def _tensor_groups(
    content: Mapping[Any, Any], entry: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a file, with the entries that lead to it."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield entry, tensors
    for key, value in named.items():
        if isinstance(value, Mapping) and depth:
            yield from _tensor_groups(value, f"{entry}{key}.", depth - 1)


def weights_digest(path: str | Path) -> str:
    """SHA-256 of the weights in a file, the same for every file that holds the same weights.

    Raises:
        CheckpointError: see `read_file`.
    """
    digest = hashlib.sha256()
    for name, value in sorted(extract_weights(read_file(path), str(path)).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_checkpoint(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, new_head: bool = False
) -> None:
    """Load weights into a model built by `lfvit.create_model`.

    Accepts this project's files, timm/DeiT weights and the released LF-ViT, CF-ViT and LV-ViT
    files, as a path (.ckpt, .pth, .pt, .safetensors) or as a state dict, see `extract_weights`.
    Position embeddings of another image size are resampled (bicubic, as timm does); a one-pass file
    fills both grids of a two-pass model. The weights of a token reducer start fresh where the file
    has none, and are left out where the model has none.

    Args:
        model: changed in place.
        source: path or state dict.
        new_head: for fine-tuning: keep the model's heads where the file has none or another number
            of classes, and leave out decoders, projection heads and the last blocks of a deeper
            ViT; all of it is logged.

    Raises:
        CheckpointError: the file is missing, truncated, holds more than weights, or values that
            are no weights such as NaN, or does not fit; the message names the file, the first keys
            that do not fit and what would.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    found = extract_weights(source if isinstance(source, Mapping) else read_file(source), name)
    expected = model.state_dict()
    weights = _renamed(found, expected) if "first_pos_embed" in expected else dict(found)
    reducer = {key: value for key, value in expected.items() if REDUCER.match(key)}
    if not any(REDUCER.match(key) for key in weights):
        weights |= reducer
    elif not reducer:
        weights = {key: value for key, value in weights.items() if not REDUCER.match(key)}
    for key in (key for key in expected if key in weights):
        value, real = weights[key], expected[key].is_floating_point()
        plain = not value.is_quantized and value.is_floating_point() == real
        if not plain or (real and not value.to(expected[key].dtype).isfinite().all()):
            raise CheckpointError(
                f"{name}: {key} holds {value.dtype} values that are no dense, finite weights; use "
                "an earlier checkpoint, or save the model's state_dict again"
            )
    for key in filter(POS_EMBED.fullmatch, expected):
        if key in weights and weights[key].shape != expected[key].shape:
            # no grid, or one that does not fit into memory: refused below
            with suppress(ValueError, RuntimeError, IndexError):
                weights[key] = resample_pos_embed(weights[key], expected[key].shape[1])
    if new_head:
        weights = _with_new_heads(weights, expected, name)
    misfits = {
        "missing": [key for key in expected if key not in weights],
        "unknown": [key for key in weights if key not in expected],
        "of another size": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    if any(misfits.values()):  # before anything is loaded
        first = [f"{label}: {', '.join(keys[:3])}" for label, keys in misfits.items() if keys]
        raise CheckpointError(
            f"{name}: does not fit this {type(model).__name__}. {'; '.join(first)}. "
            f"{_description(found)}{'' if new_head else HINT}"
        )
    fresh = {
        re.sub(r"^(backbone|blocks)\.", "", k).split(".")[0]
        for k in expected
        if weights[k] is expected[k]
    }
    if fresh:
        log.info("%s: made anew: %s", name, ", ".join(sorted(fresh)))
    model.load_state_dict(weights)


def _renamed(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's weights under the names of a two-pass model."""
    weights = dict(found)
    if "first_pos_embed" not in found:  # else this project's own names
        for pattern, replacement in RELEASED_NAMES.items():
            weights = {re.sub(pattern, replacement, k): value for k, value in weights.items()}
    reuse = {key: value for key, value in expected.items() if key.startswith("reuse.")}
    if "pos_embed" in weights:  # a one-pass file: both grids start from it
        weights["first_pos_embed"] = weights["second_pos_embed"] = weights.pop("pos_embed")
        # what is reused adds nothing at first, so that the second pass starts as good as one pass
        weights |= {k: torch.zeros_like(v) if LAST.match(k) else v for k, v in reuse.items()}
    if not reuse:
        weights = {key: value for key, value in weights.items() if not key.startswith("reuse.")}
    return weights


def _with_new_heads(
    weights: dict[str, Tensor], expected: dict[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The model's own heads where the file's do not fit, and nothing the model has no use for."""
    heads = {h: [k for k in expected if k.removeprefix("backbone.").startswith(h)] for h in HEADS}
    others = expected.keys() - {key for keys in heads.values() for key in keys}
    if not others <= weights.keys():  # another model, which will be refused
        return weights
    depth, deeper = _depth(expected), _depth(weights)
    if depth < deeper:
        log.info("%s: the first %d of its %d blocks", name, depth, deeper)
    unused = [key for key in weights if key not in expected and not BODY.match(key)]
    weights = {k: v for k, v in weights.items() if not (m := BLOCK.match(k)) or int(m[1]) < depth}
    weights = {key: value for key, value in weights.items() if key not in unused}
    for head, keys in heads.items():
        if all(key in weights and weights[key].shape == expected[key].shape for key in keys):
            continue
        part = head.removesuffix(".")
        found = [len(weights[key]) for key in keys if key in weights and weights[key].ndim]
        classes = len(expected[keys[0]])
        reason = (
            f"its {part} has {found[0]} classes, the model {classes}" if found else f"no {part}"
        )
        log.info("%s: %s", name, reason)
        weights |= {key: expected[key] for key in keys}
    if unused:
        log.info("%s: left out %s", name, ", ".join(sorted({k.split(".")[0] for k in unused})))
    return weights


def _depth(weights: Mapping[str, Any]) -> int:
    """Number of blocks, which state dicts count from 0."""
    return max((int(match[1]) + 1 for key in weights if (match := BLOCK.match(key))), default=0)


def _description(found: dict[str, Tensor]) -> str:
    """For the message about a file that does not fit: what it is, and what would fit."""
    sizes = {key.removeprefix("backbone."): value for key, value in found.items() if value.ndim}
    if "norm.weight" not in sizes or "cls_token" not in sizes:
        return (
            "Files that fit: this project's, timm/DeiT's, released LF-ViT, CF-ViT and LV-ViT ones"
        )
    passes = "two" if "first_pos_embed" in found or "pos_embed_list.0" in found else "one"
    family = "lv_vit" if "patch_embed.conv1.weight" in sizes else "vit"
    depth = _depth(sizes)
    head = f"num_classes={len(sizes['head.weight'])}" if "head.weight" in sizes else "no head"
    return (
        f"The file is a {passes}-pass model with family={family}, embed_dim="
        f"{len(sizes['norm.weight'])}, depth={depth}, {head}"
    )

"""Files of weights: read without executing anything from them, and loaded into models.

Accepted are this project's own files, timm/DeiT's and the released LF-, CF- and LV-ViT ones.
"""

import argparse
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lfvit.errors import CheckpointError
from lfvit.models.resample import resample_pos_embed
from lfvit.models.zoo import locate

RECORD = "lfvit"  # the entry of a file that describes its model; JSON in a .safetensors
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # entries that hold the weights
PREFIXES = ("model.", "module.", "_orig_mod.")  # what trainers put before every name
HEADS = ("head.", "head_dist.", "aux_head.")
POS_EMBEDS = ("first_pos_embed", "second_pos_embed", "pos_embed")
REDUCER = re.compile(r"^(blocks\.)?reducer\.")

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
PLAIN_VALUES: list[Any] = [  # what training scripts store beside their weights
    argparse.Namespace,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")),
    np.dtype,
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]

RELEASED_NAMES = (  # the released two-pass files -> this project's names
    (r"^blocks\.reducer\.", "reducer."),
    (r"^pos_embed_list\.0$", "first_pos_embed"),
    (r"^pos_embed_list\.1$", "second_pos_embed"),
    (r"^reuse_block\.0\.", "reuse.norm."),
    (r"^reuse_block\.1\.", "reuse.mlp."),
    (r"^((?:cls|reg)_token$)", r"backbone.\1"),
    (r"^((?:patch_embed|norm_pre|blocks|norm|head|aux_head)\.)", r"backbone.\1"),
)


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a file of weights to CPU memory without executing anything from it.

    Args:
        path: of a file, or ``zoo:NAME``.

    Returns:
        Its entries: of a .safetensors the weights, and the record in its metadata if it has one.

    Raises:
        CheckpointError: missing, truncated, or not made of plain weights.
    """
    path = locate(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; pass the path of a .ckpt, .pth or .safetensors"
        )
    _refuse_compressed(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path) | _read_record(path)
        with torch.serialization.safe_globals(PLAIN_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises many kinds for damaged files
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
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


def _refuse_compressed(path: Path) -> None:
    """A small compressed file could fill the memory; PyTorch stores tensors uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [i.filename for i in archive.infolist() if i.compress_type]
    except Exception:  # another format, or damaged in one of many ways: reading it will tell
        return
    if compressed:
        raise CheckpointError(
            f"{path}: holds compressed entries ({compressed[0]}), which PyTorch never writes"
        )


def _read_record(path: Path) -> dict[str, Any]:
    """The record in the metadata of a .safetensors file, under `RECORD`; empty without one."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(RECORD)
    if text is None:
        return {}
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its metadata {RECORD!r} is no JSON mapping")
    return {RECORD: record}


def extract_weights(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The named tensors of a file, without its wrappers and name prefixes.

    Half precision becomes float32, in which resampling is exact.

    Args:
        content: entries of a file, or a state dict.
        name: of the file, for messages.

    Raises:
        CheckpointError: no tensors, or tensors that do not hold their values.
    """
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(
            f"{name}: no weights found; its entries are {', '.join(map(str, list(content)[:5]))}"
        )
    for key, value in weights.items():
        dense = value.layout == torch.strided and value.device.type != "meta"
        # a view can claim any number of values with one in memory
        if not dense or value.numel() > value.untyped_storage().nbytes() // value.element_size():
            raise CheckpointError(
                f"{name}: {key} claims {_shape(value)} values without holding them; save the "
                "weights as plain, contiguous tensors"
            )
        if value.dtype in (torch.float16, torch.bfloat16):
            weights[key] = value.float()
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


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
    files, as a path (.ckpt, .pth, .pt, .safetensors) or as a state dict. Position embeddings of
    another image size are resampled (bicubic, as timm does); a one-pass file fills both grids of a
    two-pass model. The weights of a token reducer start fresh where the file has none, and are left
    out where the model has none.

    Args:
        model: changed in place.
        source: path or state dict.
        new_head: keep the model's heads if the file has another number of classes, for fine-tuning.

    Raises:
        CheckpointError: the file is missing, truncated, holds more than weights, or values that
            are no weights such as NaN, or does not fit; the message names the file, the first keys
            that do not fit and what would.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    found = extract_weights(source if isinstance(source, Mapping) else read_file(source), name)
    expected = model.state_dict()
    weights = _with_reducer(_renamed(found, expected), expected)
    _refuse_values(weights, expected, name)
    for key in POS_EMBEDS:
        if key in weights and key in expected and weights[key].shape != expected[key].shape:
            weights[key] = _resampled(weights[key], expected[key])
    if new_head:
        for key in [k for k in weights if k.removeprefix("backbone.").startswith(HEADS)]:
            if key in expected and weights[key].shape != expected[key].shape:
                weights[key] = expected[key]
    _refuse_misfit(model, weights, found, name)
    model.load_state_dict(weights)


def _renamed(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's weights under the names of a two-pass model; unchanged for a one-pass model."""
    if "first_pos_embed" not in expected:
        return found
    weights = {}
    for key, value in found.items():
        if "first_pos_embed" not in found:  # else this project's own names
            for pattern, replacement in RELEASED_NAMES:
                key = re.sub(pattern, replacement, key)
        weights[key] = value
    if "pos_embed" in weights:  # a one-pass file: both grids start from it, feature reuse is new
        weights["first_pos_embed"] = weights["second_pos_embed"] = weights.pop("pos_embed")
        weights |= {key: expected[key] for key in expected if key.startswith("reuse.")}
    if not any(key.startswith("reuse.") for key in expected):
        weights = {key: value for key, value in weights.items() if not key.startswith("reuse.")}
    return weights


def _with_reducer(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A reducer starts fresh in weights trained without one, and is left out of a model without."""
    theirs = {key: value for key, value in weights.items() if REDUCER.match(key)}
    ours = {key: value for key, value in expected.items() if REDUCER.match(key)}
    if theirs and ours and theirs.keys() != ours.keys():
        raise CheckpointError(
            f"the file's token reducer has the weights {', '.join(sorted(theirs)[:2])}, the "
            f"model's {', '.join(sorted(ours)[:2])}: load it into a model with its own reducer, "
            "or without one"
        )
    others = {key: value for key, value in weights.items() if key not in theirs}
    return others | ((theirs or ours) if ours else {})


def _resampled(pos_embed: Tensor, expected: Tensor) -> Tensor:
    """For the model's grid; unchanged if they cannot fit, which is reported later."""
    if pos_embed.ndim != 3 or pos_embed.shape[-1] != expected.shape[-1]:
        return pos_embed
    try:
        return resample_pos_embed(pos_embed, expected.shape[1])
    except (ValueError, RuntimeError):  # no grid, or one that does not fit into memory
        return pos_embed


def _refuse_values(weights: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Values that PyTorch would cast silently, or refuse without the file's name."""
    for key in (key for key in expected if key in weights):
        value, real = weights[key], expected[key].is_floating_point()
        plain = not value.is_quantized and value.is_floating_point() == real
        if not plain or (real and not value.to(expected[key].dtype).isfinite().all()):
            raise CheckpointError(
                f"{name}: {key} holds {value.dtype} values that are no dense, finite weights; use "
                "an earlier checkpoint, or save the model's state_dict again"
            )


def _refuse_misfit(
    model: nn.Module, weights: dict[str, Tensor], found: dict[str, Tensor], name: str
) -> None:
    """Before anything is loaded: the first names and sizes that differ, and what the file is."""
    expected = model.state_dict()
    misfits = {
        "missing": [key for key in expected if key not in weights],
        "unknown": [key for key in weights if key not in expected],
        "of another size": [
            f"{key} {_shape(weights[key])} instead of {_shape(expected[key])}"
            for key in expected
            if key in weights and weights[key].shape != expected[key].shape
        ],
    }
    if not any(misfits.values()):
        return
    first = [f"{label}: {', '.join(keys[:3])}" for label, keys in misfits.items() if keys]
    sizes = {key.removeprefix("backbone."): value for key, value in found.items() if value.ndim}
    advice = "Files that fit: this project's, timm/DeiT's, released LF-ViT, CF-ViT and LV-ViT ones"
    if "norm.weight" in sizes and "head.weight" in sizes:
        depth = len({key.split(".")[1] for key in sizes if re.match(r"blocks\.\d+\.", key)})
        two_pass = "first_pos_embed" in found or "pos_embed_list.0" in found
        family = "lv_vit" if "patch_embed.conv1.weight" in sizes else "vit"
        advice = (
            f"The file is a {'two-pass' if two_pass else 'one-pass'} model with family={family}, "
            f"embed_dim={len(sizes['norm.weight'])}, depth={depth}, "
            f"num_classes={len(sizes['head.weight'])}; new_head=True keeps the model's own head"
        )
    raise CheckpointError(
        f"{name}: does not fit this {type(model).__name__}. {'; '.join(first)}. {advice}"
    )


def _shape(tensor: Tensor) -> str:
    """Such as 3x16."""
    return "x".join(map(str, tensor.shape)) or "scalar"

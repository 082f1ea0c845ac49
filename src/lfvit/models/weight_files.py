"""Files of weights: what is in them, without executing anything from them."""

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lfvit.errors import CheckpointError
from lfvit.models.zoo import locate

RECORD = "lfvit"  # the entry of a file from which its model is rebuilt; JSON in a .safetensors
WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # where files keep their weights
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
PLAIN_VALUES: list[Any] = [  # what training scripts store beside their weights
    argparse.Namespace,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")),
    np.dtype,
    _NUMPY_SCALAR,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]
HALVES = (torch.float16, torch.bfloat16)
PREFIXES = ("model.", "module.", "_orig_mod.")  # what trainers put before every name


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a file of weights to CPU memory without executing anything from it.

    Args:
        path: of a file, or the name of a model in the zoo, such as "zoo:NAME".

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
            return load_file(path) | _record_of(path)
        with torch.serialization.safe_globals(PLAIN_VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
    except Exception as error:  # torch.load raises many kinds for damaged files
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            global_ = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise CheckpointError(
                f"{path}: holds more than weights ({global_[1] if global_ else 'pickled code'}), "
                "and nothing from a file is executed; save its state_dict alone with "
                "torch.save(model.state_dict(), ...) where you trust it"
            ) from error
        raise CheckpointError(
            f"{path}: truncated or not a PyTorch file ({type(error).__name__}); copy or download "
            "it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


def weights_digest(path: str | Path) -> str:
    """A name of the weights in a file: the same for every file that holds the same ones.

    Raises:
        CheckpointError: see `read_file`.
    """
    digest = hashlib.sha256()
    for name, value in sorted(extract_weights(read_file(path), str(path)).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _record_of(path: Path) -> dict[str, Any]:
    """The record of a .safetensors file under its name, or nothing."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(RECORD)
    if text is None:
        return {}
    try:
        record = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata {RECORD!r} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its metadata {RECORD!r} is not a mapping")
    return {RECORD: record}


def extract_weights(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The named tensors of a file, without its wrappers and name prefixes.

    Half precision becomes float32, in which resampling is exact.
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
        _refuse_unreal(key, value, name)
        if value.dtype in HALVES:
            weights[key] = value.float()
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores tensors as they are: small files do not become large in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [i.filename for i in archive.infolist() if i.compress_type]
    except Exception:  # another format, or damaged, in many ways: told when it is read
        return
    if compressed:
        raise CheckpointError(
            f"{path}: holds compressed entries ({compressed[0]}), which PyTorch never writes"
        )


def _refuse_unreal(key: str, tensor: Tensor, name: str) -> None:
    """A view can claim any number of values with one in memory."""
    plain = tensor.layout == torch.strided and tensor.device.type != "meta"
    if not plain or tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():
        raise CheckpointError(
            f"{name}: {key} claims {shape_of(tensor)} values without holding them; save "
            "the weights as plain, contiguous tensors"
        )


def shape_of(tensor: Tensor) -> str:
    """In words, such as 3x16."""
    return "x".join(map(str, tensor.shape)) or "scalar"

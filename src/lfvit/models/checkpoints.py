"""Weights fitted into models: this project's own, timm/DeiT's and the released LF-, CF- and LV-ViT
ones.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lfvit.errors import CheckpointError
from lfvit.models.resample import resample_pos_embed
from lfvit.models.two_pass import TwoPassViT
from lfvit.models.weight_files import extract_weights, read_file, shape_of

HEADS = ("head.", "head_dist.", "aux_head.")
POSITIONS = ("first_pos_embed", "second_pos_embed", "pos_embed")

RELEASED_NAMES = (  # the released two-pass files -> this project's names
    (r"^blocks\.reducer\.", "reducer."),
    (r"^pos_embed_list\.0$", "first_pos_embed"),
    (r"^pos_embed_list\.1$", "second_pos_embed"),
    (r"^reuse_block\.0\.", "reuse.norm."),
    (r"^reuse_block\.1\.", "reuse.mlp."),
    (r"^((?:cls|reg)_token$)", r"backbone.\1"),
    (r"^((?:patch_embed|norm_pre|blocks|norm|head|aux_head)\.)", r"backbone.\1"),
)


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
        new_head: keep the model's own heads where the file has another number of classes, for
            fine-tuning.

    Raises:
        CheckpointError: the file is missing, truncated, holds more than weights, or values that
            are no weights such as NaN, or does not fit; the message names the file, the first keys
            that do not fit and what would.
    """
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    found = extract_weights(source if isinstance(source, Mapping) else read_file(source), name)
    weights = _rename(model, found)
    own = model.state_dict()
    _refuse_values(weights, own, name)
    for key in POSITIONS:
        if key in weights and key in own and weights[key].shape != own[key].shape:
            weights[key] = _resample(weights[key], own[key])
    if new_head:
        for key in [k for k in weights if k.removeprefix("backbone.").startswith(HEADS)]:
            if key in own and weights[key].shape != own[key].shape:
                weights[key] = own[key]
    _refuse_misfits(model, weights, own, name, _advice(found, own))
    model.load_state_dict(weights)


def _rename(model: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """To the model's own names: the file's layout shows in its position embeddings."""
    if not isinstance(model, TwoPassViT):
        return _with_reducer(model, found)
    weights: dict[str, Tensor] = {}
    for key, value in found.items():
        if "first_pos_embed" in found:  # this project's own names
            weights[key] = value
            continue
        for pattern, replacement in RELEASED_NAMES:
            key = re.sub(pattern, replacement, key)
        weights[key] = value
    if "pos_embed" in weights:  # a one-pass file: both grids start from it, the reuse term is new
        weights["first_pos_embed"] = weights["second_pos_embed"] = weights.pop("pos_embed")
        own = model.state_dict()
        weights.update({key: own[key] for key in own if key.startswith("reuse.")})
    if model.reuse is None:
        weights = {key: value for key, value in weights.items() if not key.startswith("reuse.")}
    return _with_reducer(model, weights)


def _with_reducer(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A reducer can be put into a model trained without it, starting fresh, or left out of one."""
    inside = re.compile(r"^(blocks\.)?reducer\.")
    kept = {key: value for key, value in weights.items() if not inside.match(key)}
    if any(inside.match(key) for key in model.state_dict()):
        theirs = {key: value for key, value in weights.items() if inside.match(key)}
        own = {key: value for key, value in model.state_dict().items() if inside.match(key)}
        if theirs and theirs.keys() != own.keys():
            raise CheckpointError(
                f"the file's token reducer has the weights {', '.join(sorted(theirs)[:2])}, the "
                f"model's {', '.join(sorted(own)[:2])}: load it into a model with its own reducer, "
                "or without one"
            )
        return {**kept, **(theirs or own)}
    return kept


def _resample(positions: Tensor, own: Tensor) -> Tensor:
    """Position embeddings for the model's own grid; what does not fit is reported as it is."""
    if positions.ndim != 3 or positions.shape[-1] != own.shape[-1]:
        return positions
    try:
        return resample_pos_embed(positions, own.shape[1])
    except (ValueError, RuntimeError):  # no grid, or one that does not fit into memory
        return positions


def _refuse_values(weights: dict[str, Tensor], own: dict[str, Tensor], name: str) -> None:
    """What is no weight would be cast without a word, or fail without the file's name."""
    for key in (key for key in own if key in weights):
        value, fits = weights[key], weights[key].shape == own[key].shape
        real = own[key].is_floating_point()
        if value.is_quantized or value.is_floating_point() != real:
            what = f"numbers of type {value.dtype}"
        elif real and fits and not value.to(own[key].dtype).isfinite().all():
            what = "values that are not finite"
        else:
            continue
        raise CheckpointError(
            f"{name}: {key} holds {what}, and weights are dense and finite; use an earlier "
            "checkpoint, or save the model's state_dict again"
        )


def _refuse_misfits(
    model: nn.Module, weights: dict[str, Tensor], own: dict[str, Tensor], name: str, advice: str
) -> None:
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f"{key} {shape_of(weights[key])} instead of {shape_of(own[key])}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if not (missing or unexpected or shapes):
        return
    parts = []
    for label, keys in (("missing", missing), ("unknown", unexpected), ("of another size", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            parts.append(f"{label}: {', '.join(keys[:3])}{more}")
    raise CheckpointError(
        f"{name}: does not fit this {type(model).__name__}. {'; '.join(parts)}. {advice}"
    )


def _advice(found: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    """What model would take the file, as far as its names and shapes tell."""
    by_end = {key.removeprefix("backbone."): v for key, v in found.items() if v.ndim}
    norm, head = by_end.get("norm.weight"), by_end.get("head.weight")
    blocks = {key.split(".")[1] for key in by_end if re.match(r"blocks\.\d+\.", key)}
    if norm is None or not blocks:
        return (
            "Files that fit: this project's checkpoints, timm/DeiT ViTs, released LF-ViT, CF-ViT "
            "and LV-ViT files"
        )
    family = "lv_vit" if "patch_embed.conv1.weight" in by_end else "vit"
    two_stage = "first_pos_embed" in found or "pos_embed_list.0" in found
    classes = f", num_classes={len(head)}" if head is not None else ""
    text = (
        f"The file is a {'two-pass' if two_stage else 'one-pass'} model with family={family}, "
        f"embed_dim={len(norm)}, depth={len(blocks)}{classes}: create the model with these"
    )
    own_head = own.get("head.weight", own.get("backbone.head.weight"))
    if head is not None and own_head is not None and len(head) != len(own_head):
        text += ", or pass new_head=True to keep its own head"
    return text

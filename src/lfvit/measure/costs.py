"""Multiply-accumulates (MACs) of one image, counted by fvcore.

The papers call this figure FLOPs. Products of matrices and convolutions count one per
multiply-accumulate, a LayerNorm 5 per element and a BatchNorm 2 (fvcore's conventions); additions,
activations, constant factors, softmax and resizing count nothing. fvcore does not see inside fused
attention, which is off while it counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.export import PassModule, pass_modules
from lfvit.models.reducers import Reducer
from lfvit.utils.validation import Settings

_COUNTED: dict[Any, list[float]] = {}
"""MACs of the passes by model configuration."""

STAGES = ("first", "second", "third")


def count_macs(model: nn.Module, stage: str | None = None) -> float:
    """MACs of one image.

    Args:
        model: of `lfvit.create_model`, or a ViT of timm.
        stage: "first" or "second" for one pass of a two-pass model, by itself; None for all.

    Raises:
        ConfigError: unknown stage, a stage of a one-pass model, or a model it cannot count.
    """
    if stage not in (None, *STAGES):
        raise ConfigError(f"stage={stage!r} is unknown; valid: first, second, third, None")
    macs = pass_macs(model)
    if stage is not None and (len(macs) == 1 or STAGES.index(stage) >= len(macs)):
        passes = "one pass" if len(macs) == 1 else f"{len(macs)} passes"
        raise ConfigError(f"stage={stage!r}: a {type(model).__name__} has {passes}; use stage=None")
    return sum(macs) if stage is None else macs[STAGES.index(stage)]


def pass_macs(model: nn.Module) -> list[float]:
    """MACs of each pass by itself, for one image; cached by the model's configuration.

    If the cost depends on the image, see `is_adaptive`, this is the most that it can be.

    Raises:
        ConfigError: a model that it cannot count.
    """
    key = _configuration(model)
    if key not in _COUNTED:
        images = next(model.parameters()).new_zeros(1, 3, *_image_size(model))
        with _countable(model, fixed_length=True):
            _COUNTED[key] = [_trace(one_pass) for one_pass in pass_modules(model, images)]
    return list(_COUNTED[key])


def macs_by_image(model: nn.Module, images: Tensor) -> Tensor:
    """MACs of each pass by itself, for each of the images (B, 3, S, S): (B, P) float64."""
    with _countable(model, fixed_length=False):
        rows = [[_trace(one) for one in pass_modules(model, image[None])] for image in images]
    return torch.tensor(rows, dtype=torch.float64)


def is_adaptive(model: nn.Module) -> bool:
    """Whether the number of tokens, and with it the cost, depends on the image."""
    return any(isinstance(module, Reducer) and module.adaptive for module in model.modules())


def _configuration(model: nn.Module) -> Any:
    """Classes and plain settings of all modules, and sizes of weights: they decide the cost."""
    plain = (int, float, str, list, tuple, frozenset, Settings, type(None))
    settings = [
        (type(module), name, repr(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, plain) and name not in ("training", "fused_attn")
    ]
    sizes = [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    return tuple(settings), tuple(sizes)


def _image_size(model: Any) -> tuple[int, int]:
    """Height and width of the images a model is made for."""
    if hasattr(model, "image_size"):
        return model.image_size, model.image_size
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is None:
        raise ConfigError(
            f"cannot count this {type(model).__name__}, whose image size is unknown; use a ViT of "
            "timm or a model of lfvit.create_model"
        )
    return size[0], size[1]


def _trace(one_pass: PassModule) -> float:
    analysis = FlopCountAnalysis(one_pass.module, tuple(one_pass.inputs.values()))
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    macs = float(analysis.total() - analysis.by_operator()["upsample_bilinear2d"])
    if hidden := [op for op in analysis.unsupported_ops() if "attention" in op]:
        raise ConfigError(f"cannot count {hidden[0]}: attention must be computed unfused")
    return macs


@contextmanager
def _countable(model: nn.Module, *, fixed_length: bool) -> Iterator[None]:
    """For a while, evaluation mode, nothing compiled, fused attention off, and no gradients.

    fixed_length: adaptive reducers keep the longest sequence there can be.
    """
    names = ["fused_attn", "_compiled_call_impl", "first_pass", "second_pass", "run_pass"]
    names += ["training", "fixed_length"]
    changed = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name in names  # fvcore cannot trace compiled functions
        if name in vars(module)
    ]
    for module, name, _ in changed:
        if name in ("fused_attn", "training", "fixed_length"):
            setattr(module, name, fixed_length and name == "fixed_length")
        else:
            delattr(module, name)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)

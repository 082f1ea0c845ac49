"""Multiply-accumulates (MACs) of one image, counted by fvcore.

The papers call this figure FLOPs. Products of matrices and convolutions count one per
multiply-accumulate, a LayerNorm 5 per element and a BatchNorm 2 (fvcore's conventions); additions,
activations, constant factors, softmax and resizing count nothing. fvcore does not see inside fused
attention, which is off while it counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from lfvit.errors import ConfigError
from lfvit.models.passes import num_passes
from lfvit.models.resample import downsample
from lfvit.models.two_pass import FirstPass

_COUNTED: dict[Any, list[float]] = {}
"""MACs of the passes by model configuration."""

STAGES = ("first", "second")


def count_macs(model: nn.Module, stage: str | None = None) -> float:
    """MACs of one image.

    Args:
        model: of `lfvit.create_model`, or a ViT of timm.
        stage: "first" or "second" for one pass of a two-pass model, by itself; None for all.

    Raises:
        ConfigError: unknown stage, a stage of a one-pass model, or a model it cannot count.
    """
    if stage not in (None, *STAGES):
        raise ConfigError(f"stage={stage!r} is unknown; valid: first, second, None")
    if stage is not None and num_passes(model) == 1:
        raise ConfigError(f"stage={stage!r}: a {type(model).__name__} has one pass; use stage=None")
    macs = pass_macs(model)
    return sum(macs) if stage is None else macs[STAGES.index(stage)]


def pass_macs(model: nn.Module) -> list[float]:
    """MACs of each pass by itself, for one image; cached by the model's configuration.

    Raises:
        ConfigError: a model that it cannot count.
    """
    key = _configuration(model)
    if key not in _COUNTED:
        with _countable(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            _COUNTED[key] = _count(model, _image_size(model))
    return list(_COUNTED[key])


def expected_gmacs(macs_first: float, macs_second: float, exit_fraction: float) -> float:
    """GMACs per image when the given fraction of images exits after the first pass."""
    return (macs_first + (1 - exit_fraction) * macs_second) / 1e9


def _configuration(model: nn.Module) -> Any:
    """Classes and plain settings of all modules, and sizes of weights: they decide the cost."""
    plain = (int, float, str, list, tuple, frozenset, type(None))
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
    side = getattr(model, "image_size", None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if side is None and size is None:
        raise ConfigError(
            f"cannot count this {type(model).__name__}, whose image size is unknown; use a ViT of "
            "timm or a model of lfvit.create_model"
        )
    return (side, side) if side is not None else tuple(size)


def _count(model: Any, size: tuple[int, int]) -> list[float]:
    images = next(model.parameters()).new_zeros(1, 3, *size)
    if num_passes(model) == 1:
        return [_trace(_Call(model, type(model).forward), images)]
    first_pass, second_pass = type(model).first_pass, type(model).second_pass  # not compiled ones
    coarse_images = downsample(images)
    first = first_pass(model, images, coarse_images)
    selection = model.select(first.scores)

    def second_logits(model: Any, images: Tensor, *first: Tensor) -> Tensor:
        return second_pass(model, images, FirstPass(*first), selection).logits

    return [
        _trace(_Call(model, lambda model, x: tuple(first_pass(model, images, x))), coarse_images),
        _trace(_Call(model, second_logits), images, *first),
    ]


class _Call(nn.Module):
    """A function of a model as a module with the model's weights, which is what fvcore traces."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.model, *inputs)


def _trace(module: nn.Module, *inputs: Tensor) -> float:
    analysis = FlopCountAnalysis(module.eval(), inputs)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    macs = float(analysis.total())
    if hidden := [op for op in analysis.unsupported_ops() if "attention" in op]:
        raise ConfigError(f"cannot count {hidden[0]}: attention must be computed unfused")
    return macs


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """For a while, evaluation mode, and fused attention off."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
        for module, training in modes.items():
            module.training = training

"""The passes as graphs: captured with torch.export, written as ONNX, for any number of images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfvit.errors import ConfigError, ExportError
from lfvit.models.selection import Selection
from lfvit.models.two_pass import FirstPass, TwoPassViT

OPSET = 18
ONE_FILE = 1_500_000_000  # bytes of weights; above, ONNX keeps them in a file of their own


class ExportedPass(NamedTuple):
    """One pass as a module of tensors.

    name: "first_pass", "second_pass", or "model" of a one-pass model.
    inputs: by name, an example of 3 images. outputs: names of what the module returns.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class FirstPassModule(nn.Module):
    """The first pass and the selection: images (B, 3, S, S) -> a tuple of tensors.

    Returns logits, coarse, features (see `FirstPass`), gca, cells, fine_indices and, of window
    selectors, region (see `Selection`).
    """

    outputs = ("logits", "coarse", "features", "gca", "cells", "fine_indices", "region")

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        first = self.model.first_pass(images)
        gca, region, cells, fine_indices = self.model.select(first.scores)
        tensors = (first.logits, first.coarse, first.features, gca, cells, fine_indices)
        return tensors if region is None else (*tensors, region)


class SecondPassModule(nn.Module):
    """The second pass from outputs of the first: logits (B, C)."""

    inputs = ("coarse", "features", "cells", "fine_indices")

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, coarse: Tensor, features: Tensor, cells: Tensor, fine_indices: Tensor
    ) -> Tensor:
        unused = coarse[:, 0, 0]  # logits and scores are not read any more
        first = FirstPass(unused, unused, unused, coarse, features)
        selection = Selection(unused, None, cells, fine_indices)
        return self.model.second_pass(images, first, selection).logits


def export_passes(model: nn.Module, image_size: int) -> list[ExportedPass]:
    """The passes of a model of `lfvit.create_model`, in evaluation mode, in their order."""
    images = next(model.parameters()).new_zeros(3, 3, image_size, image_size)
    model.eval()
    if not isinstance(model, TwoPassViT):
        return [ExportedPass("model", model, {"images": images}, ("logits",))]
    first = FirstPassModule(model).eval()
    with torch.no_grad():
        tensors = first(images)
    outputs = dict(zip(first.outputs, tensors, strict=False))  # without a region, the last is out
    second_inputs = {name: outputs[name] for name in SecondPassModule.inputs}
    return [
        ExportedPass("first_pass", first, {"images": images}, tuple(outputs)),
        ExportedPass(
            "second_pass",
            SecondPassModule(model).eval(),
            {"images": images, **second_inputs},
            ("logits",),
        ),
    ]


def capture(exported: ExportedPass) -> ExportedProgram:
    """Trace a pass with torch.export, for any number of images.

    Raises:
        ConfigError: the pass draws at random, as random selectors do.
        ExportError: it cannot be captured, such as a selector that branches on its scores.
    """
    inputs = tuple(exported.inputs.values())
    try:
        with torch.no_grad(), _exporter_silenced():
            program = torch.export.export(
                exported.module, inputs, dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in inputs)
            )
    except Exception as error:  # every kind, from whatever the pass does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{exported.name} cannot be exported: {reason[0]}") from error
    drawn = [node for node in program.graph.nodes if _is_random(node.target)]
    if drawn:
        model = getattr(exported.module, "model", None)
        raise ConfigError(
            f"method.selector={getattr(model, 'selector', None)!r} draws at random "
            f"({drawn[0].target}), and an exported model must be deterministic; export a model "
            "with another selector, such as ngca or gca"
        )
    return program


def write_onnx(exported: ExportedPass, path: Path) -> None:
    """Write a pass as ONNX; inputs and outputs have their names, the first axis is free.

    Raises:
        ConfigError, ExportError: see `capture`; or an operation that ONNX does not have.
    """
    program = capture(exported)
    weights = sum(p.numel() * p.element_size() for p in program.parameters())
    try:
        with torch.no_grad(), _exporter_silenced():
            torch.onnx.export(
                program,
                (),
                path,
                input_names=list(exported.inputs),
                output_names=list(exported.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=weights > ONE_FILE,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"{exported.name} cannot be written as ONNX: {error}") from error


def _stable_sort(
    values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> Any:
    """``aten.sort.stable``, which the exporter lacks, as TopK: of equals the first one wins."""
    from onnxscript import opset18 as op

    dim %= len(values.shape)
    size = op.Shape(values, start=dim, end=dim + 1)
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _is_random(target: Any) -> bool:
    """Whether an operation draws at random; dropout does not in evaluation mode."""
    random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
    return random and not any(name in str(target) for name in ("dropout", "attention"))


@contextmanager
def _exporter_silenced() -> Iterator[None]:
    """For a while, without the exporter's log and warnings for its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""The passes as graphs: captured with torch.export, written as ONNX, for any number of images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.export
from torch import Tensor, nn

from lfvit.errors import ConfigError, ExportError
from lfvit.models.cascade import CascadeViT
from lfvit.models.selectors import Selection
from lfvit.models.two_pass import FirstPass, TwoPassViT

OPSET = 18
ONE_FILE = 1_500_000_000  # bytes of weights; above, ONNX keeps them in a file of their own


class PassModule(NamedTuple):
    """One pass as a module from tensors to tensors.

    name: "first_pass", "second_pass", or "model" of a one-pass model.
    inputs: by name, an example of 3 images. outputs: names of what the module returns.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class _FirstPass(nn.Module):
    """Images (B, 3, S, S) -> what the second pass reads, scores, and the region if there is one."""

    outputs = ("logits", "coarse", "features", "gca", "cells", "fine_indices", "region")

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        first = self.model.first_pass(images)
        gca, region, cells, fine_indices = self.model.select(first)
        tensors = (first.logits, first.coarse, first.features, gca, cells, fine_indices)
        return tensors if region is None else (*tensors, region)


class _SecondPass(nn.Module):
    """The second pass from outputs of the first: logits (B, C)."""

    inputs = ("coarse", "features", "cells", "fine_indices")

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, coarse: Tensor, features: Tensor, cells: Tensor, fine_indices: Tensor
    ) -> Tensor:
        unused = coarse[:, 0, 0]  # logits and scores are not read any more
        first = FirstPass(unused, unused, unused, unused, coarse, features)
        return self.model.second_pass(images, first, Selection(unused, None, cells, fine_indices))[
            0
        ]


class _CascadePass(nn.Module):
    """Images (B, 3, S, S), and the features of the pass before -> logits and features."""

    def __init__(self, model: CascadeViT, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index

    def forward(self, images: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.model.run_pass(self.index, images, features)


def _cascade_passes(model: CascadeViT, images: Tensor) -> Iterator[PassModule]:
    features = None
    for index, name in enumerate(("first", "second", "third", "fourth")[: model.num_passes]):
        inputs = {"images": images} | ({} if features is None else {"features": features})
        yield PassModule(
            f"{name}_pass", _CascadePass(model, index).eval(), inputs, ("logits", "features")
        )
        with torch.no_grad():
            features = model.run_pass(index, images, features)[1]


def pass_modules(model: nn.Module, images: Tensor) -> list[PassModule]:
    """The passes of a model of `lfvit.create_model`, in evaluation mode, in their order.

    Args:
        images: (3, 3, S, S), an example.
    """
    model.eval()
    if isinstance(model, CascadeViT):
        return list(_cascade_passes(model, images))
    if not isinstance(model, TwoPassViT):
        return [PassModule("model", model, {"images": images}, ("logits",))]
    first, second = _FirstPass(model).eval(), _SecondPass(model).eval()
    with torch.no_grad():
        outputs = dict(zip(first.outputs, first(images), strict=False))  # region may be missing
    inputs = {"images": images} | {name: outputs[name] for name in second.inputs}
    return [
        PassModule("first_pass", first, {"images": images}, tuple(outputs)),
        PassModule("second_pass", second, inputs, ("logits",)),
    ]


def capture(one_pass: PassModule) -> Any:
    """Trace a pass with torch.export, for any number of images.

    Returns:
        A `torch.export.ExportedProgram`.

    Raises:
        ConfigError: the pass draws at random, as random selectors do.
        ExportError: it cannot be captured, such as a selector that branches on its scores.
    """
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in one_pass.inputs)
    try:
        with torch.no_grad(), _exporter_silenced():
            program = torch.export.export(
                one_pass.module, tuple(one_pass.inputs.values()), dynamic_shapes=shapes
            )
    except Exception as error:  # every kind, from whatever the pass does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{one_pass.name} cannot be exported: {reason[0]}") from error
    drawn = [
        node
        for node in program.graph.nodes
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        and not any(name in str(node.target) for name in ("dropout", "attention"))  # in eval mode
    ]
    if drawn:
        raise ConfigError(
            f"{one_pass.name} draws at random ({drawn[0].target}), and an exported model must be "
            "deterministic; export with another method.selector, such as ngca or gca"
        )
    return program


def write_onnx(one_pass: PassModule, path: Path) -> None:
    """Write a pass as ONNX; inputs and outputs have their names, the first axis is free.

    Raises:
        ConfigError, ExportError: see `capture`; or an operation that ONNX does not have.
    """
    program = capture(one_pass)
    weights = sum(p.numel() * p.element_size() for p in program.parameters())
    try:
        with torch.no_grad(), _exporter_silenced():
            torch.onnx.export(
                program,
                (),
                path,
                input_names=list(one_pass.inputs),
                output_names=list(one_pass.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=weights > ONE_FILE,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"{one_pass.name} cannot be written as ONNX: {error}") from error


def _stable_sort(
    values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> Any:
    """``aten.sort.stable``, which the exporter lacks, as TopK: of equals the first one wins."""
    from onnxscript import opset18 as op

    dim %= len(values.shape)
    size = op.Shape(values, start=dim, end=dim + 1)
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


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

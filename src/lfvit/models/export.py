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
from lfvit.models.selection import Scores, Selection
from lfvit.models.two_pass import FirstPass, TwoPassViT

OPSET = 18
ONE_FILE = 1_500_000_000  # bytes of weights; above, ONNX keeps them in a file of their own


class Pass(NamedTuple):
    """One pass as a module of tensors.

    name: "first_pass", "second_pass", or "model" of a one-pass model.
    inputs: by name, an example of 3 images. outputs: names of what the module returns.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class FirstAndSelection(nn.Module):
    """The first pass and the choice of cells: images (B, 3, S, S) -> what `SecondFromFirst` needs.

    Returns logits, inputs, outputs (see `FirstPass`), gca, cells, fine_indices and, of window
    selectors, region (see `Selection`).
    """

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        first = self.model.first_pass(images)
        chosen = self.model.select(Scores(first.gca, first.last))
        region = () if chosen.region is None else (chosen.region,)
        left = (first.logits, first.inputs, first.outputs)
        return (*left, chosen.gca, chosen.cells, chosen.fine_indices, *region)


class SecondFromFirst(nn.Module):
    """The second pass, from what the first one left: logits (B, C)."""

    def __init__(self, model: TwoPassViT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, inputs: Tensor, outputs: Tensor, cells: Tensor, fine_indices: Tensor
    ) -> Tensor:
        unread = inputs[:, 0, 0]  # logits and scores have done their work
        first = FirstPass(unread, unread, unread, inputs, outputs)
        return self.model.second_pass(
            images, first, Selection(unread, None, cells, fine_indices)
        ).logits


def passes_of(model: nn.Module, image_size: int) -> list[Pass]:
    """The passes of a model of `lfvit.create_model`, in evaluation mode, in their order."""
    like = next(model.parameters())
    images = like.new_zeros(3, 3, image_size, image_size)
    model.eval()
    if not isinstance(model, TwoPassViT):
        return [Pass("model", model, {"images": images}, ("logits",))]
    both = FirstAndSelection(model).eval()
    with torch.no_grad():
        found = both(images)
    names = ("logits", "inputs", "outputs", "gca", "cells", "fine_indices", "region")[: len(found)]
    left = dict(zip(names, found, strict=True))
    needed = ("inputs", "outputs", "cells", "fine_indices")
    second = {"images": images, **{name: left[name] for name in needed}}
    return [
        Pass("first_pass", both, {"images": images}, names),
        Pass("second_pass", SecondFromFirst(model).eval(), second, ("logits",)),
    ]


def capture(one: Pass) -> ExportedProgram:
    """The graph of a pass, for any number of images.

    Raises:
        ConfigError: the pass draws at random, as random selectors do.
        ExportError: it cannot be captured, such as a selector that branches on its scores.
    """
    inputs = tuple(one.inputs.values())
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                one.module, inputs, dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in inputs)
            )
    except Exception as error:  # every kind, from whatever the pass does
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the {_words(one)} cannot be exported: {reason[0]}") from error
    drawn = [node for node in program.graph.nodes if _draws(node.target)]
    if drawn:
        model = getattr(one.module, "model", None)
        raise ConfigError(
            f"method.selector={getattr(model, 'selector', None)!r} draws at random "
            f"({drawn[0].target}), and an exported model must answer an image the same way every "
            "time; export a model with another selector, such as ngca or gca"
        )
    return program


def write_onnx(one: Pass, path: Path) -> None:
    """Write a pass as ONNX; inputs and outputs have their names, the first axis is free.

    Raises:
        ConfigError, ExportError: see `capture`; or an operation that ONNX does not have.
    """
    program = capture(one)
    weights = sum(p.numel() * p.element_size() for p in program.parameters())
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                program,
                (),
                path,
                input_names=list(one.inputs),
                output_names=list(one.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=weights > ONE_FILE,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the {_words(one)} cannot be written as ONNX: {error}") from error


def _stable_sort(
    values: Any, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> Any:
    """``aten.sort.stable``, which the exporter lacks, as TopK: of equals the first one wins."""
    from onnxscript import opset18 as op

    dim %= len(values.shape)
    size = op.Shape(values, start=dim, end=dim + 1)
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


def _draws(target: Any) -> bool:
    """Whether an operation is random; dropout is not in evaluation, nor attention, which has it."""
    random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
    return random and not any(name in str(target) for name in ("dropout", "attention"))


def _words(one: Pass) -> str:
    return one.name.replace("_", " ")


@contextmanager
def _quiet() -> Iterator[None]:
    """For a while, without the exporters' remarks to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

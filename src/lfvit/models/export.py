"""The passes as graphs: captured with torch.export, written as ONNX, for any number of images.

`write_passes` writes a file for each, `quantise` puts linear layers into int8, and `join` makes one
file of two passes with early exit inside, in which every weight is stored once.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.export
from torch import Tensor, nn

from lfvit.errors import ConfigError, ExportError
from lfvit.models.cascade import CascadeViT
from lfvit.models.selectors import Selection
from lfvit.models.two_pass import FirstPass, TwoPassViT

OPSET = 18
WEIGHTS = "weights"  # of the file's metadata and of model.json: their digest
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


def write_passes(model: nn.Module, image_size: int, folder: Path) -> list[Path]:
    """A file for every pass of a model of `lfvit.create_model`, see `write_onnx`."""
    paths = []
    for one_pass in pass_modules(model, torch.zeros(3, 3, image_size, image_size)):
        paths.append(folder / f"{one_pass.name}_fp32.onnx")
        write_onnx(one_pass, paths[-1])
    return paths


def quantise(passes: Sequence[Path], images: np.ndarray) -> list[Path]:
    """Write passes with the products of their linear layers in int8, the rest in float32.

    Weights have a scale per output channel. Inputs of a layer have one, from the smallest and the
    largest value on `images`, so that an answer does not depend on the rest of its batch.

    Args:
        passes: files of `write_passes`; the new ones are written beside them.
        images: (N, 3, S, S) float32, normalised.
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Batches(CalibrationDataReader):
        def __init__(self, batches: list[dict[str, np.ndarray]], inputs: list[str]) -> None:
            self.batches = iter([{name: batch[name] for name in inputs} for batch in batches])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    known = [{"images": images[i : i + 16]} for i in range(0, len(images), 16)]
    written = []
    for source in passes:
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        inputs = [node.name for node in session.get_inputs()]
        outputs = [node.name for node in session.get_outputs()]
        written.append(source.with_name(source.name.replace("fp32", "int8")))
        with _exporter_silenced():
            quantize_static(
                source,
                written[-1],
                Batches(known, inputs),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.with_name(f"{source.name}.data").exists(),
                extra_options={  # attention's products, and all sums, stay in float32
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                },
            )
        for batch in known:  # what the next pass reads
            found = session.run(outputs, {name: batch[name] for name in inputs})
            batch |= dict(zip(outputs, found, strict=True))
    return written


EARLY_EXIT = """
early_exit (float[N, 3, S, S] images, float threshold)
    => (float[N, C] logits, bool[N] exited, float[N] confidence)
<int64 none = {0}, int64[1] axis_0 = {0}, int64[1] axis_1 = {1}>
{
    probabilities = Softmax <axis = 1> (first_logits)
    confidence = ReduceMax <keepdims = 0> (probabilities, axis_1)
    exited = GreaterOrEqual (confidence, threshold)
    goes_on = Not (exited)
    positions = NonZero (goes_on)
    rest = Squeeze (positions, axis_0)
    rows = Transpose (positions)
    count = Size (rest)
    any = Greater (count, none)
    logits = If (any) <
        then_branch = second_pass () => (float[N, C] joined) {
            joined = ScatterND (first_logits, rows, second_logits)
        },
        else_branch = exit () => (float[N, C] kept) { kept = Identity (first_logits) }
    >
}
"""
"""What follows the first pass, in ONNX's text syntax; the second pass goes into its branch."""


def join(passes: Sequence[Path], target: Path) -> str:
    """Write the file of one pass as it is, or those of two as one graph with early exit.

    It has the inputs ``images`` (B, 3, S, S) and ``threshold``, a float32, and the outputs
    ``logits`` (B, C) of the pass at which each image stopped, ``exited`` (B,) bool, ``confidence``
    (B,) float32, and of the first pass ``fine_indices`` and ``region``.

    Returns:
        A digest of the weights, which the file holds as well.
    """
    import onnx

    model, *others = [onnx.load(path) for path in passes]
    for second in others:
        model.graph.CopyFrom(_early_exit(model.graph, second.graph))
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.SerializeToString())
    model.metadata_props.add(key=WEIGHTS, value=digest.hexdigest())
    outside = sum(tensor.ByteSize() for tensor in model.graph.initializer) > ONE_FILE
    onnx.save(model, target, save_as_external_data=outside, location=f"{target.name}.data")
    return digest.hexdigest()


def _early_exit(first: Any, second: Any) -> Any:
    """The graph of two passes, in which each weight is stored once."""
    from onnx import compose, helper, numpy_helper, parser

    first = compose.add_prefix_graph(first, "first_")
    second = compose.add_prefix_graph(second, "second_")
    graph = parser.parse_graph(EARLY_EXIT)
    weights: dict[tuple[Any, ...], Any] = {}  # by content
    for one_pass in (first, second):
        kept = {}
        for tensor in one_pass.initializer:
            value = numpy_helper.to_array(tensor)
            key = (value.dtype, value.shape, hashlib.sha256(value.tobytes()).digest())
            kept[tensor.name] = weights.setdefault(key, tensor).name
        for node in one_pass.node:
            node.input[:] = [kept.get(name, name) for name in node.input]
    graph.initializer.extend(weights.values())
    inputs = [value.name for value in second.input]
    gathers = [
        helper.make_node("Gather", [name.replace("second_", "first_", 1), "rest"], [name])
        for name in inputs
    ]
    start = helper.make_node("Identity", ["images"], ["first_images"])
    branch = graph.node[-1].attribute[0].g  # where any image goes on
    for part, nodes in ((branch, [*gathers, *second.node]), (graph, [start, *first.node])):
        nodes += part.node
        del part.node[:]
        part.node.extend(nodes)
    graph.input[0].type.CopyFrom(first.input[0].type)
    for value in first.output:
        name = value.name.removeprefix("first_")
        if name == "logits":
            graph.output[0].type.CopyFrom(value.type)
        elif name in ("fine_indices", "region"):
            graph.node.append(helper.make_node("Identity", [value.name], [name]))
            graph.output.append(helper.make_value_info(name, value.type))
    for value in [graph.input[0], *graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return graph


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

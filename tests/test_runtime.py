"""Exported models in onnxruntime: the same images, the same early exit, the same answers."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import lfvit
from conftest import TINY, photograph, run_python
from lfvit import runtime
from lfvit.commands.export import agreement, check_parity, describe
from lfvit.data.augment import eval_transform, normalize
from lfvit.data.images import FILTERS, images_of, read_image
from lfvit.data.settings import Preprocessing
from lfvit.errors import ConfigError, ExportError
from lfvit.models.export import (
    WEIGHTS,
    PassModule,
    capture,
    join,
    pass_modules,
    quantise,
    write_onnx,
    write_passes,
)
from lfvit.models.reducers import REDUCERS
from lfvit.models.selectors import SELECTORS
from lfvit.models.tokens import topk_indices
from lfvit.models.two_pass import REUSE
from lfvit.runs.models import Trained
from lfvit.runs.record import CheckpointRecord
from lfvit.utils.atomic_io import write_json

SIZE, CLASSES = 64, 7


def small(method, **options):
    """A model with weights large enough for its answers to differ between images."""
    torch.manual_seed(0)
    options = {"backbone": dict(TINY), **options}
    model = lfvit.create_model(method, image_size=SIZE, num_classes=CLASSES, **options)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "pos_embed" not in name:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def written(model, method, folder, **augment):
    """The files that export.py would write."""
    record = CheckpointRecord(
        method={"name": method},
        backbone={},
        classes=[f"class {i}" for i in range(CLASSES)],
        image_size=SIZE,
        data={"dataset": {"_target_": "lfvit.data.NeedleSet"}, "augment": augment},
    )
    passes = write_passes(model, SIZE, folder)
    weights = join(passes, folder / runtime.GRAPH)
    write_json(folder / runtime.CARD, describe(Trained(model, record)) | {WEIGHTS: weights})
    return passes


@pytest.fixture(scope="module")
def two_pass(tmp_path_factory):
    """An LF-ViT, and its files."""
    folder = tmp_path_factory.mktemp("lf_vit")
    model = small("lf_vit", backbone={**TINY, "depth": 3}, gca_start=1)
    written(model, "lf_vit", folder)
    return model, folder


def test_every_weight_is_stored_once(two_pass):
    """Two passes take little more than one, and the file describes its inputs and outputs."""
    _, folder = two_pass
    names = ("first_pass_fp32.onnx", "second_pass_fp32.onnx", "model.onnx")
    first, second, both = (
        sum(tensor.ByteSize() for tensor in onnx.load(folder / name).graph.initializer)
        for name in names
    )
    assert max(first, second) < both < 0.7 * (first + second)
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    session = runtime.load(folder).session
    assert [(node.name, node.shape) for node in session.get_inputs()] == [
        ("images", ["N", 3, SIZE, SIZE]),
        ("threshold", []),
    ]
    shapes = {node.name: node.shape[:1] for node in session.get_outputs()}
    names = ("logits", "exited", "confidence", "fine_indices", "region")
    assert shapes == {name: ["N"] for name in names}


def test_int8_answers_as_float32_whatever_else_is_in_the_batch(two_pass, tmp_path):
    model, folder = two_pass
    passes = [folder / f"{name}_pass_fp32.onnx" for name in ("first", "second")]
    weights = join(quantise(passes, images(32, seed=1).numpy()), tmp_path / runtime.GRAPH)
    card = json.loads((folder / runtime.CARD).read_text())
    write_json(tmp_path / runtime.CARD, card | {WEIGHTS: weights})
    exact, rounded = runtime.load(folder), runtime.load(tmp_path)
    batch = images(40).numpy()
    shares = agreement(exact, rounded, batch, 0.8)
    assert set(shares) == {"first_pass", "second_pass"}
    threshold = middle(model, images(40))
    whole = rounded.infer(batch, threshold)
    assert 0 < whole.exited.sum() < 40
    for row in (0, 7, 39):
        alone = rounded.infer(batch[row : row + 1], threshold)
        np.testing.assert_allclose(alone.logits[0], whole.logits[row], atol=1e-4)
    assert np.abs(exact.infer(batch, threshold).logits - whole.logits).max() > 1e-3
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    with pytest.raises(ExportError, match=r"in int8 the first_pass answers .*precision=fp32"):
        agreement(exact, rounded, batch, 1.01)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def middle(model, batch):
    """A threshold that about half of the images reach."""
    return model.infer(batch, 0).confidence.sort().values[len(batch) // 2 - 1 :][:2].mean().item()


@pytest.mark.parametrize("count", [0, 1, 9])
@pytest.mark.parametrize("threshold", [0.0, None, 1.01])
def test_early_exit_is_that_of_the_model(two_pass, count, threshold):
    model, folder = two_pass
    batch = images(count)
    threshold = middle(model, images(9)) if threshold is None else threshold
    expected = model.infer(batch, threshold)
    found = runtime.load(folder).infer(batch.numpy(), threshold)
    assert found.logits.shape == (count, CLASSES)
    np.testing.assert_array_equal(found.exited, expected.exited.numpy())
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.confidence, expected.confidence.numpy(), atol=1e-5)
    if count:
        np.testing.assert_array_equal(found.region, expected.selection.region.numpy())
        np.testing.assert_array_equal(found.fine_indices, expected.selection.fine_indices.numpy())
        first, both = lfvit.count_macs(model, "first"), lfvit.count_macs(model)
        assert found.macs.tolist() == [first if out else both for out in expected.exited]
    if count == 9 and 0 < threshold < 1:
        assert 0 < found.exited.sum() < 9


class Ranked(torch.nn.Module):
    def forward(self, values):
        return topk_indices(values, 8)


def test_equal_scores_are_settled_as_in_pytorch(tmp_path):
    """The first of equal values wins in both."""
    values = torch.randint(3, (3, 30), generator=torch.Generator().manual_seed(0)).float()
    write_onnx(
        PassModule("ranked", Ranked(), {"values": values}, ("order",)), tmp_path / "ranked.onnx"
    )
    session = onnxruntime.InferenceSession(tmp_path / "ranked.onnx")
    (found,) = session.run(["order"], {"values": values.numpy()})
    np.testing.assert_array_equal(found, topk_indices(values, 8).numpy())


def test_files_that_answer_differently_are_refused(two_pass):
    model, folder = two_pass
    with pytest.raises(ExportError, match=r"first_pass differs from PyTorch by .* tolerance="):
        check_parity(model, folder, 1e-12)


def test_files_that_look_elsewhere_are_refused(two_pass):
    _, folder = two_pass
    with pytest.raises(ExportError, match=r"chooses other cells: the same for [0-4] of 8 images"):
        check_parity(small("lf_vit", selector="negative_ngca"), folder, 1e9)


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_images_are_prepared_as_in_evaluation(interpolation, photographs):
    for size, crop_pct, crop_mode in (
        (64, 0.875, "center"),
        (48, 0.9, "squash"),
        (112, 1.0, "center"),
    ):
        preprocessing = Preprocessing(
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.4),
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        )
        transform = eval_transform(preprocessing, size)
        card = {"classes": [], "image_size": size, **preprocessing.model_dump()}
        model = runtime.Runtime(card, None)
        grey_levels = 255 * np.array(card["std"])[:, None, None]
        odd = [photograph(shape, 1, 5) for shape in ((31, 97), (301, 64), (65, 64), (73, 73))]
        for picture in [*images_of(photographs)[:8], *odd]:
            image = picture if isinstance(picture, Image.Image) else read_image(picture)
            expected = normalize(torch.as_tensor(transform(image))[None], preprocessing)[0]
            difference = np.abs(model.prepare(picture) - expected.numpy()) * grey_levels
            assert difference.max() < 2.01  # two roundings may meet, and hardly ever do
            assert difference.mean() < 0.05
        np.testing.assert_array_equal(model.prepare(np.asarray(odd[0])), model.prepare(odd[0]))


def test_photographs_in_any_form_get_the_models_answer(two_pass, photographs):
    model, folder = two_pass
    loaded = runtime.load(folder)
    paths = images_of(photographs)
    pixels = torch.from_numpy(np.stack([loaded.prepare(path) for path in paths]))
    expected = model.infer(pixels, 0.5)
    found = loaded.predict(paths, 0.5)
    np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=1e-4)
    np.testing.assert_array_equal(found.exited, expected.exited.numpy())
    for one in (str(paths[0]), paths[0], read_image(paths[0]), np.asarray(read_image(paths[0]))):
        np.testing.assert_allclose(loaded.predict(one, 0.5).logits, found.logits[:1], atol=1e-5)
    assert loaded.predict([]).logits.shape == (0, CLASSES)


SHALLOW = {**TINY, "depth": 2}
LV = {**SHALLOW, "family": "lv_vit", "stem_dim": 8}
EVIT = {"name": "evit", "passes": "second"}
FREQUENCY = {"name": "frequency", "windows": [2, 1]}  # for each of two blocks
WRITTEN = [
    ("cf_vit", {"backbone": LV, "gca_start": 1, "reuse": "with_class_token", "reducer": EVIT}),
    ("vit", {"backbone": SHALLOW, "reducer": {"name": "tome", "r": 2}}),
    ("vit", {"backbone": SHALLOW, "reducer": FREQUENCY}),
]


@pytest.mark.parametrize(("method", "options"), WRITTEN)
def test_other_models_answer_alike_in_onnxruntime(method, options, tmp_path):
    model = small(method, **options)
    written(model, method, tmp_path)
    assert max(check_parity(model, tmp_path, 1e-4).values()) < 1e-4
    answer = runtime.load(tmp_path).predict(photograph((90, 70), 0, 0))
    assert answer.exited.all() == (method == "vit" or answer.confidence[0] >= 0.7)
    if method == "vit":
        np.testing.assert_array_equal(answer.macs, lfvit.count_macs(model))


RANDOM = {"random", "random_cells"}
CAPTURED = [  # with the pass that an option changes
    *(("lf_vit", {"selector": name}, 0) for name in sorted(SELECTORS.keys() - RANDOM)),
    *(("cf_vit", {"reuse": name}, 1) for name in REUSE),
    *(("vit", {"reducer": name}, 0) for name in sorted(REDUCERS.keys() - {"frequency"})),
    ("vit", {"reducer": FREQUENCY}, 0),
    ("lf_vit", {"background": False}, 1),
    ("vit", {"backbone": LV}, 0),
]


@pytest.mark.parametrize(("method", "options", "number"), CAPTURED)
def test_every_pass_is_a_graph_for_any_number_of_images(method, options, number):
    shallow = {"backbone": SHALLOW} | ({} if method == "vit" else {"gca_start": 1})
    model = small(method, **shallow | options)
    one = list(pass_modules(model, images(3)))[number]
    graph = capture(one).module()
    for count in (1, 4):
        inputs = [value[:1].expand(count, *value.shape[1:]) for value in one.inputs.values()]
        with torch.no_grad():
            torch.testing.assert_close(graph(*inputs), one.module(*inputs))


@pytest.mark.parametrize("selector", sorted(RANDOM))
def test_chance_cannot_be_exported(selector):
    first, _ = pass_modules(small("lf_vit", selector=selector), images(3))
    with pytest.raises(ConfigError, match="first_pass draws at random"):
        capture(first)


def test_the_runtime_needs_no_pytorch(two_pass, photographs):
    image = images_of(photographs)[0]
    code = (
        "import sys; from lfvit.runtime import load; "
        f"load({str(two_pass[1])!r}).predict({str(image)!r}); "
        "sys.exit(sorted({'torch', 'timm', 'lightning', 'hydra'} & set(sys.modules)) or 0)"
    )
    run_python("-c", code)
    out = run_python("-m", "lfvit.runtime", two_pass[1], image.parent)
    assert out.stderr == ""
    assert out.stdout.count(" %  class ") == 5 * len(images_of(image.parent))
    assert "of 2, 0." in out.stdout


def test_mistakes_are_one_message(two_pass, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"has no model\.json"):
        runtime.load(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 3}')
    with pytest.raises(ConfigError, match="format=3 is unknown; valid: 4. Export the model again"):
        runtime.load(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 4}')
    with pytest.raises(ConfigError, match=r"has no model\.onnx; pass the folder"):
        runtime.load(tmp_path)
    for text, fault in (("", "not JSON"), ("[]", "not a JSON object")):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ConfigError, match=f"{fault}; export the model again"):
            runtime.load(tmp_path)
    card = json.loads((two_pass[1] / "model.json").read_text())
    shutil.copy(two_pass[1] / "model.onnx", tmp_path)
    for wrong in (
        *({"macs": card["macs"][:1]}, {"classes": ["a", "b"]}, {"image_size": 96}),  # of another
        {"weights": "0" * 64},
        *({"macs": "x"}, {"threshold": None}, {"interpolation": "cubic"}, {"mean": {}}),
    ):
        write_json(tmp_path / "model.json", card | wrong)
        with pytest.raises(ConfigError, match="incomplete, or of .*; export the model again"):
            runtime.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes((two_pass[1] / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot open it .*; export the model again"):
        runtime.load(tmp_path)
    with pytest.raises(ConfigError, match="threshold=-1"):
        runtime.load(two_pass[1]).infer(images(1).numpy(), -1)
    with pytest.raises(SystemExit, match="2"):
        runtime.main([str(two_pass[1]), str(tmp_path / "none.jpg")])
    assert (
        capsys.readouterr().err == f"error: IMAGE={tmp_path / 'none.jpg'}: no such file or folder\n"
    )
    for typed, fault in (
        ([two_pass[1] / "model.onnx", "a.jpg"], "pass the folder that export.py wrote"),
        ([two_pass[1], two_pass[1]], "holds no images"),
        ([two_pass[1], "a.jpg", "--top", "0"], "--top has to be 1 or more"),
    ):
        with pytest.raises(SystemExit, match="2"):
            runtime.main([str(word) for word in typed])
        assert fault in capsys.readouterr().err

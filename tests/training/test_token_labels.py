"""Token labelling beside the released code's formulas, with and without mixing and maps."""

import pytest
import torch
import torch.nn.functional as F

import lfvit
from lfvit.data import Batch
from lfvit.data.label_maps import LabelMaps
from lfvit.models.lv_vit import TokenMix
from lfvit.models.passes import forward_passes
from lfvit.models.tokens import downsample
from lfvit.training.module import Classifier
from lfvit.training.settings import Schedule
from lfvit.training.token_labels import TokenTargets
from reference import lv_vit_loss, mix_box, smoothed

SPEC = {"family": "lv_vit", "embed_dim": 24, "depth": 4, "num_heads": 2, "stem_dim": 8}
C = 5
DRAW = (0.4, 0.7, 0.4)  # of 3 x 3 cells: rows 1 and 2, columns 0 and 1
CASES = [(None, False), (DRAW, False), (None, True), (DRAW, True)]


def classifier(method, epoch, monkeypatch, **options):
    torch.manual_seed(0)
    schedule = {name: options.pop(name) for name in ("aux_weight",) if name in options}
    model = lfvit.create_model(method, backbone=SPEC, image_size=96, num_classes=C, **options)
    model = model.double()
    monkeypatch.setattr(Classifier, "current_epoch", property(lambda self: epoch))
    monkeypatch.setattr(Classifier, "log", lambda *args, **kwargs: None)
    # in evaluation, so that the model can be asked again about the same batch
    return Classifier(model, Schedule(**schedule), num_classes=C, selection_epoch=2).eval()


def batch(mix=None, maps=False):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 96, 96, generator=generator)
    targets = torch.rand(3, C, generator=generator).softmax(1)
    label_maps = None
    if maps:
        scores = torch.randn(3, 2, 4, 4, generator=generator)
        classes = torch.stack([torch.randperm(C, generator=generator)[:2] for _ in range(48)])
        classes = classes.reshape(3, 4, 4, 2).permute(0, 3, 1, 2).float()
        crops = torch.tensor([[0.1, 0.0, 0.9, 0.7]] * 3)
        flipped = torch.tensor([False, True, False])
        label_maps = LabelMaps(torch.stack([scores, classes], 1), crops, flipped, smoothing=0.1)
    return Batch(images, downsample(images), targets, token_mix=mix, label_maps=label_maps)


def double(given):
    """In float64."""
    images, targets = given.images.double(), given.targets.double()
    return given._replace(images=images, coarse_images=downsample(images), targets=targets)


def centered(draw, grid):
    """The box of a draw, in cells."""
    kept, row, column = draw
    return kept, int(row * grid), int(column * grid)


def labels(given, grid=6):
    """Of the images and of their patches, before mixing; smoothed where they come from maps."""
    if given.label_maps is None:
        return given.targets, given.targets[:, None].expand(-1, grid**2, -1)
    plain = given.label_maps._replace(smoothing=0.0)
    pooled, patches = plain.patches(1, C)[:, 0], plain.patches(grid, C)
    return (
        torch.stack([smoothed(label, 0.1) for label in pooled]),
        torch.stack([torch.stack([smoothed(p, 0.1) for p in image]) for image in patches]),
    )


def assert_same_loss_and_gradients(module, given, expected):
    parameters = dict(module.model.named_parameters())
    found = module.training_step(given, 0)
    exact = {"rtol": 1e-10, "atol": 1e-12}
    if given.label_maps is not None:  # which are float32
        exact = {"rtol": 1e-5, "atol": 1e-8}
    torch.testing.assert_close(found, expected, **exact)
    for name, one, other in zip(
        parameters,
        torch.autograd.grad(found, parameters.values(), allow_unused=True),
        torch.autograd.grad(expected, parameters.values(), allow_unused=True),
        strict=True,
    ):
        assert one is not None, name
        torch.testing.assert_close(one, other, msg=name, **exact)


@pytest.mark.parametrize(("draw", "maps"), CASES)
def test_one_pass(draw, maps, monkeypatch):
    module, given = classifier("vit", 0, monkeypatch), double(batch(draw, maps))
    mix = None if draw is None else TokenMix.from_draw(draw, 6)
    dense = module.model(given.images, mix, dense=True)
    box = (0, 0, 0, 0) if draw is None else mix_box(6, *centered(draw, 6))
    images, patches = labels(given)
    expected = lv_vit_loss([dense.class_logits], dense.token_logits, images, patches, box, 1.0)
    assert_same_loss_and_gradients(module, given, expected)


@pytest.mark.parametrize("epoch", [0, 3], ids=["whole image", "selection"])
@pytest.mark.parametrize(("draw", "maps"), CASES)
def test_two_passes(draw, maps, epoch, monkeypatch):
    module = classifier("cf_vit", epoch, monkeypatch, aux_weight=0.7)
    given = double(batch(draw, maps))
    mix = None if draw is None else TokenMix.from_draw(draw, 3)
    selector = "none" if epoch == 0 else None
    out = module.model(given.images, given.coarse_images, selector=selector, mix=mix)
    fine, cells = out.selection.fine_indices, out.selection.cells
    assert fine.shape[1] == (36 if epoch == 0 else 20)
    rest = torch.tensor([sorted(set(range(9)) - set(one)) for one in cells.tolist()])
    box = [0] * 4 if draw is None else [2 * edge for edge in mix_box(3, *centered(draw, 3))]
    images, patches = labels(given)
    expected = lv_vit_loss(
        out.class_logits, out.dense.token_logits, images, patches, box, 0.7, fine, rest
    )
    assert_same_loss_and_gradients(module, given, expected)


def test_without_coarse_tokens_the_patches_that_are_there_count(monkeypatch):
    module, given = classifier("cf_vit", 3, monkeypatch, background=False), double(batch())
    dense = module.model(given.images, given.coarse_images).dense
    terms = module.losses(given)
    expected = F.cross_entropy(dense.class_logits, given.targets) + F.cross_entropy(
        dense.token_logits.flatten(0, 1), given.targets.repeat_interleave(20, 0)
    )
    torch.testing.assert_close(terms["second_loss"], expected)


@pytest.mark.parametrize("method", ["vit", "cf_vit"])
def test_mixing_every_cell_swaps_the_images_in_every_pass(method):
    model = lfvit.create_model(method, backbone=SPEC, image_size=96, num_classes=C).eval()
    images, mix = torch.randn(2, 3, 96, 96), TokenMix(torch.ones(3, 3, dtype=torch.bool))
    with torch.no_grad():
        mixed, plain = (forward_passes(model, images, mix=m).logits for m in (mix, None))
    for found, expected in zip(mixed, plain, strict=True):
        torch.testing.assert_close(found, expected.flip(0))
        assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_class_indices_are_labels_as_well():
    model = lfvit.create_model("vit", backbone=SPEC, image_size=96, num_classes=C)
    given = batch()._replace(targets=torch.tensor([4, 0, 2]))
    found = TokenTargets.of(given, model, C)
    assert found.images.argmax(1).tolist() == [4, 0, 2]
    assert found.patches.shape == (3, 36, C)
    assert found.patches.argmax(2).tolist() == [[4] * 36, [0] * 36, [2] * 36]

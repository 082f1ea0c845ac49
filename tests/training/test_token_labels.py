"""Token labelling, written out in loops, in one pass and in two, with and without mixing."""

import pytest
import torch

import lfvit
from lfvit.data import Batch
from lfvit.data.label_maps import LabelMaps
from lfvit.models.lv_vit import TokenMix
from lfvit.models.passes import forward_passes
from lfvit.models.tokens import downsample
from lfvit.training.module import Classifier
from lfvit.training.settings import Schedule
from lfvit.training.token_labels import TokenTargets, has_aux_head

SPEC = {"family": "lv_vit", "embed_dim": 24, "depth": 4, "num_heads": 2, "stem_dim": 8}
C = 5
BOX = (0.3, 0.3, 1.0, 0.7)  # of 3 x 3 cells: rows 1 and 2, column 1


def classifier(method, epoch, monkeypatch, **schedule):
    torch.manual_seed(0)
    model = lfvit.create_model(method, backbone=SPEC, image_size=96, num_classes=C)
    monkeypatch.setattr(Classifier, "current_epoch", property(lambda self: epoch))
    monkeypatch.setattr(Classifier, "log", lambda *args, **kwargs: None)
    # in evaluation, so that the model can be asked again about the same batch
    return Classifier(model, Schedule(**schedule), num_classes=C, selection_epoch=2).eval()


def batch(box=None, maps=False):
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
        label_maps = LabelMaps(torch.stack([scores, classes], 1), crops, flipped)
    return Batch(images, downsample(images), targets, token_box=box, label_maps=label_maps)


def cross_entropy(logits, label):
    return -sum(label[c] * logits.log_softmax(-1)[c] for c in range(C))


def sources(box, cells):
    """Which of the cells x cells cells the partner fills, as the box of this file rounds."""
    if box is None:
        return torch.zeros(cells, cells, dtype=torch.bool)
    top, left, bottom, right = (int(side * cells + 0.5) for side in box)
    return torch.tensor(
        [[top <= i < bottom and left <= j < right for j in range(cells)] for i in range(cells)]
    )


def patch_labels(given, box, cells, grid=6):
    """(B, grid*grid, C) and the image labels (B, C), image by image and patch by patch."""
    inside, B = sources(box, cells), len(given.images)
    area = inside.float().mean()
    maps = None if given.label_maps is None else given.label_maps.patches(grid, C)
    patches = torch.zeros(B, grid * grid, C)
    for b in range(B):
        for p in range(grid * grid):
            i, j = divmod(p, grid)
            source = B - 1 - b if inside[i * cells // grid, j * cells // grid] else b
            patches[b, p] = given.targets[source] if maps is None else maps[source, p]
    images = (1 - area) * given.targets + area * given.targets.flip(0)
    return patches, images


CASES = [(None, False), (BOX, False), (None, True), (BOX, True)]


@pytest.mark.parametrize(("box", "maps"), CASES)
def test_one_pass(box, maps, monkeypatch):
    module, given = classifier("vit", 0, monkeypatch), batch(box, maps)
    found = module.training_step(given, 0)
    patches, images = patch_labels(given, box, 6)
    mix = None if box is None else TokenMix(sources(box, 6))
    dense, expected = module.model(given.images, mix, dense=True), 0
    for b in range(3):
        expected = expected + cross_entropy(dense.class_logits[b], images[b]) / 3
        for p in range(36):
            label = cross_entropy(dense.token_logits[b, p], patches[b, p])
            expected = expected + 0.5 * label / (3 * 36)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("epoch", [0, 3], ids=["whole image", "selection"])
@pytest.mark.parametrize(("box", "maps"), CASES)
def test_two_passes(box, maps, epoch, monkeypatch):
    module, given = classifier("cf_vit", epoch, monkeypatch, aux_weight=0.7), batch(box, maps)
    found = module.training_step(given, 0)
    patches, images = patch_labels(given, box, 3)
    mix = None if box is None else TokenMix(sources(box, 3))
    selector = "none" if epoch == 0 else None
    out = module.model(given.images, given.coarse_images, selector=selector, mix=mix)
    fine, g = out.selection.fine_indices, 3
    assert fine.shape[1] == (36 if epoch == 0 else 20)
    expected = 0
    for b in range(3):
        rest = sorted(set(range(g * g)) - set(out.selection.cells[b].tolist()))
        labels = [patches[b, p] for p in fine[b].tolist()]
        for cell in rest:
            i, j = 2 * (cell // g), 2 * (cell % g)
            corners = [6 * i + j, 6 * i + j + 1, 6 * i + j + 6, 6 * i + j + 7]
            labels.append(sum(patches[b, p] for p in corners) / 4)
        assert len(labels) == out.dense.token_logits.shape[1]
        expected = expected + cross_entropy(out.dense.class_logits[b], images[b]) / 3
        for n, label in enumerate(labels):
            loss = cross_entropy(out.dense.token_logits[b, n], label)
            expected = expected + 0.7 * loss / (3 * len(labels))
        p1, p2 = out.first_logits[b].softmax(0), out.second_logits[b].softmax(0)
        expected = expected + sum(p2[c] * (p2[c].log() - p1[c].log()) for c in range(C)) / 3
    torch.testing.assert_close(found, expected)


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


@pytest.mark.parametrize("method", ["vit", "cf_vit"])
def test_only_lv_vit_has_an_auxiliary_head(tiny, method):
    plain = lfvit.create_model(method, backbone=tiny, image_size=112)
    assert not has_aux_head(plain)
    assert has_aux_head(lfvit.create_model(method, backbone=SPEC, image_size=96))


def test_every_weight_learns_from_one_step(monkeypatch):
    for method in ("vit", "cf_vit"):
        module = classifier(method, 3, monkeypatch).train()
        module.training_step(batch(BOX), 0).backward()
        assert [name for name, p in module.model.named_parameters() if p.grad is None] == []
        assert all(p.grad.abs().sum() > 0 for p in module.model.parameters() if p.ndim > 1)

"""The needle set: the same everywhere, balanced, and with the object in its box."""

import numpy as np
import pytest

from lfvit.data import NeedleSet


def test_an_image_depends_on_its_index_alone():
    first, second = NeedleSet(train_images=20, seed=3), NeedleSet(train_images=50, seed=3)
    second[7]
    a, b = first[11], second[11]
    assert np.array_equal(a[0], b[0])
    assert a[1:] == b[1:]


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "val"}])
def test_seeds_and_splits_share_no_image(change):
    assert not np.array_equal(NeedleSet()[2][0], NeedleSet(**change)[2][0])


def test_classes_are_balanced_and_named():
    images = NeedleSet(train_images=60)
    assert len(images.classes) == len(set(images.classes))
    counts = np.bincount(images.targets)
    assert counts.max() - counts.min() <= 1
    assert [images[i][1] for i in range(12)] == images.targets[:12]
    assert images.name(3) == "needle 112 6 0 3"


@pytest.mark.parametrize("image_size", [48, 224])
def test_the_object_fills_its_box(image_size):
    images = NeedleSet(image_size=image_size)
    for index in range(6):
        pixels, _, (x0, y0, x1, y1) = images[index]
        assert pixels.shape == (image_size, image_size, 3)
        assert pixels.dtype == np.uint8
        assert 0 <= x0 < x1 <= image_size
        assert 0 <= y0 < y1 <= image_size
        assert 0.1 * image_size < x1 - x0 < 0.45 * image_size
        # the badge's fine pattern makes the box rougher than the picture around it
        rough = np.abs(np.diff(pixels.astype(float), axis=1)).mean(axis=2)
        assert rough[y0:y1, x0 : x1 - 1].mean() > 1.5 * rough.mean()

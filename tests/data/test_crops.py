"""Crops of a batch on its device, against timm's and Pillow's of one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from conftest import photograph
from lfvit.data.augment import Augment
from lfvit.data.batches import as_pixels
from lfvit.data.crops import RATIO, RandomCrops
from lfvit.data.images import FILTERS
from lfvit.errors import ConfigError
from lfvit.utils.seeding import seeded


def crops(size=48, **augment):
    return RandomCrops.of(Augment.of({"crop_scale": (0.08, 1.0), **augment}), size)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 260), (300, 60), (64, 64)])
def test_crops_are_distributed_as_timms(width, height):
    """Quantiles of place and size of many crops, also where the first attempts rarely fit."""
    count, quantiles = 6000, torch.linspace(0.05, 0.95, 7)
    places, flipped = crops(hflip=0.3).draw(torch.tensor([[width, height]]).repeat(count, 1), 7)
    image = Image.new("RGB", (width, height))
    with seeded(0):
        drawn = [
            RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), RATIO)
            for _ in range(count)
        ]
    top, left, h, w = torch.tensor(drawn).float().unbind(1)
    expected = torch.stack(
        [left / width, top / height, (left + w) / width, (top + h) / height, w / width, h / height],
        1,
    )
    found = torch.cat([places, places[:, 2:] - places[:, :2]], 1)
    torch.testing.assert_close(
        found.quantile(quantiles, 0), expected.quantile(quantiles, 0), atol=0.035, rtol=0
    )
    area = (w * h).mean() / (width * height)
    assert found[:, 4:].prod(1).mean() == pytest.approx(area.item(), abs=0.01)
    pixels = found * torch.tensor([width, height] * 3)
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    assert flipped.double().mean() == pytest.approx(0.3, abs=0.03)


def test_a_photograph_too_long_for_any_crop_is_cropped_in_the_middle():
    places, _ = crops(crop_scale=(1.0, 1.0)).draw(torch.tensor([[300, 60], [60, 300]]), 0)
    long, tall = places.tolist()
    assert long == pytest.approx([110 / 300, 0, 190 / 300, 1])
    assert tall == pytest.approx([0, 110 / 300, 1, 190 / 300])


def test_every_image_has_its_own_crop_and_a_seed_repeats_them():
    sizes = torch.tensor([[200, 100]]).repeat(8, 1)
    first, again, other = (crops().draw(sizes, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert len(first[0].unique(dim=0)) == 8
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 56, 130])
def test_pixels_are_pillows(interpolation, size):
    """Enlarged or shrunk, of smooth images or noise, at the border or within."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    images = [photograph((64, 64), 1, 3), noise] * 3
    boxes = [(0, 0, 64, 64), (0, 0, 64, 64), (5, 9, 25, 60), (5, 9, 25, 60), (31, 2, 64, 17)]
    boxes.append((0, 40, 50, 64))
    flips = [False, True, False, True, True, False]
    cut = crops(size, interpolation=interpolation).cut(
        torch.stack([as_pixels(image) for image in images]),
        torch.tensor(boxes) / 64,
        torch.tensor(flips),
    )
    assert cut.dtype == torch.uint8
    for image, box, flip, found in zip(images, boxes, flips, cut, strict=True):
        resized = image.crop(box).resize((size, size), FILTERS[interpolation])
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized
        difference = (as_pixels(resized).int() - found.int()).abs().float()
        # Pillow rounds and clips between its two directions as well
        assert difference.mean() < 0.35
        assert difference.max() <= (30 if image is noise else 1)


def test_a_stored_photograph_keeps_its_proportions_in_a_crop():
    """Squeezed into the square and stretched back: about what timm makes of the photograph."""
    image = photograph((200, 120), 0, 1)
    settings = crops(64, crop_pct=0.8, hflip=0.0)
    stored = settings.store(image)
    assert stored.shape == (3, 80, 80)
    box = (20, 30, 100, 90)
    place = torch.tensor([box]) / torch.tensor([200, 120, 200, 120])
    found = settings.cut(stored[None], place, torch.tensor([False]))[0]
    expected = as_pixels(image.crop(box).resize((64, 64), Image.Resampling.BICUBIC))
    assert (found.int() - expected.int()).abs().float().mean() < 1


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"auto_augment": "rand-m9"}, "augment.auto_augment=rand-m9.*auto_augment=null, or data"),
        ({"color_jitter": 0.3}, "augment.color_jitter=0.3.*set augment.color_jitter=0, or data"),
        (
            {"interpolation": "random"},
            "interpolation='random' is unknown; valid: bilinear, bicubic",
        ),
    ],
)
def test_what_is_not_possible_on_the_device_is_refused(augment, message):
    with pytest.raises(ConfigError, match=message):
        crops(**augment)

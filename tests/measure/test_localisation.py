"""Coverage of boxes against counting pixels."""

import pytest
import torch

from lfvit.measure.localisation import coverage, random_windows, region_mask, summarize
from lfvit.measure.schemas import Coverage
from lfvit.models.selectors import Scores, select


def pixels(mask, side):
    return mask.repeat_interleave(side // mask.shape[1], 1).repeat_interleave(
        side // mask.shape[2], 2
    )


@pytest.mark.parametrize("selector", ["ngca", "none"])
def test_coverage_counts_pixels(selector):
    torch.manual_seed(0)
    found = select(Scores(*torch.rand(2, 8, 7, 7)), selector, 4, 0.5)
    if selector == "ngca":  # whole windows, although alpha leaves cells of them coarse
        assert (region_mask(found, 4).sum(dim=(1, 2)) == 64).all()
    corner = torch.randint(0, 80, (8, 2))
    boxes = torch.cat([corner, corner + torch.randint(5, 32, (8, 2))], dim=1)
    mask = region_mask(found, 4)
    expected = []
    for row, (x0, y0, x1, y1) in zip(pixels(mask, 112), boxes.tolist(), strict=True):
        expected.append(row[y0:y1, x0:x1].float().mean())
    torch.testing.assert_close(coverage(mask, boxes, 112), torch.stack(expected))


def test_random_windows_are_the_mean_over_all_places():
    boxes = torch.tensor([[10, 20, 40, 60], [80, 3, 111, 20]])
    shares = []
    for row in range(3):
        for column in range(3):
            mask = torch.zeros(2, 14, 14, dtype=torch.bool)
            mask[:, 2 * row : 2 * row + 10, 2 * column : 2 * column + 10] = True
            shares.append(coverage(mask, boxes, 112))
    expected = summarize(torch.stack(shares).flatten())
    found = random_windows(boxes, 7, 5, 112)
    assert (found.covered, found.whole) == pytest.approx((expected.covered, expected.whole))
    assert random_windows(boxes, 7, 7, 112) == Coverage(covered=1, whole=1)

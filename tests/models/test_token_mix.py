"""Mix-token: which cells move, at any resolution, and how the labels follow."""

import torch

from lfvit.models.lv_vit import TokenMix


def test_the_cells_of_a_box_come_from_the_batch_read_backwards():
    maps = torch.arange(3.0)[:, None, None, None].expand(3, 2, 8, 8)  # image b is full of b
    mix = TokenMix.from_box((0.25, 0.5, 0.75, 1.0), 4)  # rows 1 and 2, columns 2 and 3
    for scale in (1, 2):  # one cell is two, then one pixel wide
        found = mix.maps(maps[..., :: 2 // scale, :: 2 // scale])
        for b in range(3):
            for i in range(4 * scale):
                for j in range(4 * scale):
                    inside = scale <= i < 3 * scale and j >= 2 * scale
                    assert (found[b, :, i, j] == (2 - b if inside else b)).all()


def test_targets_are_mixed_by_area():
    mix = TokenMix.from_box((0, 0, 0.5, 1), 4)
    targets = torch.eye(4)[[0, 1, 2]]
    torch.testing.assert_close(
        mix.targets(targets),
        torch.tensor([[0.5, 0, 0.5, 0], [0, 1.0, 0, 0], [0.5, 0, 0.5, 0]]),
    )
    quarter = TokenMix.from_box((0, 0, 0.5, 0.5), 4).targets(targets)
    torch.testing.assert_close(quarter[0], torch.tensor([0.75, 0, 0.25, 0]))


def test_an_empty_box_changes_nothing_and_a_full_one_swaps():
    maps, targets = torch.randn(2, 3, 4, 4), torch.eye(2)
    none, full = TokenMix.from_box((0.5, 0.5, 0.5, 0.5), 2), TokenMix.from_box((0, 0, 1, 1), 2)
    assert torch.equal(none.maps(maps), maps)
    assert torch.equal(none.targets(targets), targets)
    assert torch.equal(full.maps(maps), maps.flip(0))
    assert torch.equal(full.targets(targets), targets.flip(0))

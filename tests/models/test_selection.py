"""Selectors against loops over windows and cells, on random score maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from lfvit.models.selectors import (
    SELECTORS,
    Scores,
    coarse_cell,
    remaining_cells,
)
from lfvit.models.selectors import select as select_by_scores
from lfvit.models.selectors.windows import window_sums
from lfvit.models.tokens import num_keep

maps = st.tuples(
    st.integers(2, 9), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 10_000)
).filter(lambda t: t[1] <= t[0])


def select(gca, name, m, alpha):
    return select_by_scores(Scores(gca, gca.flip(0)), name, m, alpha)


@given(maps)
@settings(max_examples=60, deadline=None)
def test_ngca_is_the_window_of_the_loops(case):
    g, m, alpha, seed = case
    gca = torch.rand(2, g, g, generator=torch.Generator().manual_seed(seed))
    found = select(gca, "ngca", m, alpha)
    for i in range(2):
        corner = reference.best_window(gca[i].double(), m)
        sums = window_sums(gca, m)[i]
        assert sums[tuple(found.region[i])] == sums.max()
        # rounding in float32 may prefer another window only where the sums are as good as equal
        assert sums[corner] == pytest.approx(sums.max().item(), rel=1e-5)
        cells = reference.keep_in_window(gca[i], tuple(found.region[i].tolist()), m, alpha)
        assert found.cells[i].tolist() == cells


@pytest.mark.parametrize("name", sorted(SELECTORS))
@given(maps)
@settings(max_examples=25, deadline=None)
def test_every_selector_keeps_distinct_cells_and_their_patches(name, case):
    g, m, alpha, seed = case
    gca = torch.rand(3, g, g, generator=torch.Generator().manual_seed(seed))
    found = select(gca, name, m, alpha)
    k = found.cells.shape[1]
    for i in range(3):
        cells, fine = found.cells[i].tolist(), found.fine_indices[i].tolist()
        assert cells == sorted(set(cells))
        assert fine == sorted(set(fine))
        assert len(fine) == 4 * k
        assert {int(c) for c in coarse_cell(found.fine_indices[i], g)} == set(cells)
        rest = remaining_cells(found.cells[i : i + 1], g)[0].tolist()
        assert sorted(cells + rest) == list(range(g * g))
    if found.region is not None:
        assert k == math.ceil(round(alpha * m * m, 9))
        rows, columns = found.cells // g, found.cells % g
        corner = found.region[:, None]
        assert ((rows >= corner[..., 0]) & (rows < corner[..., 0] + m)).all()
        assert ((columns >= corner[..., 1]) & (columns < corner[..., 1] + m)).all()


def test_ablations_look_elsewhere():
    gca = torch.zeros(1, 7, 7)
    gca[0, 1:4, 1:4] = 1.0  # the best 3 x 3 window
    gca[0, 6, 6] = 5.0  # the best single cell, in a corner
    gca[0, 0, 5] = -1.0  # the worst single cell
    assert select(gca, "ngca", 3, 1.0).region.tolist() == [[1, 1]]
    assert select(gca, "maximum_gca", 3, 1.0).region.tolist() == [[4, 4]]  # shifted into the grid
    assert select(gca, "minimum_gca", 3, 1.0).region.tolist() == [[0, 4]]
    worst = select(gca, "negative_ngca", 3, 1.0).region[0]
    assert window_sums(gca, 3)[0][tuple(worst)] == -1.0


def test_first_window_and_first_cells_win_a_tie():
    found = select(torch.ones(2, 7, 7), "ngca", 5, 0.5)
    assert found.region.tolist() == [[0, 0], [0, 0]]
    assert found.cells[0].tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 14, 15, 16]


def test_random_windows_reach_every_place_and_follow_the_seed():
    gca = torch.zeros(600, 7, 7)
    torch.manual_seed(0)
    first = select(gca, "random", 5, 1.0).region
    torch.manual_seed(0)
    assert torch.equal(first, select(gca, "random", 5, 1.0).region)
    assert {tuple(corner) for corner in first.tolist()} == {
        (r, c) for r in range(3) for c in range(3)
    }


def test_kept_count_is_not_fooled_by_binary_fractions():
    assert [num_keep(a, 25) for a in (0.88, 0.92, 0.56, 0.5, 1.0)] == [22, 23, 14, 13, 25]
    assert num_keep(0.001, 9) == 1
